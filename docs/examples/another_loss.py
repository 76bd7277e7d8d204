"""Train with a loss of pytorch-metric-learning (PML), made introspective, and beside it the same loss as it is.

    pip install pytorch-metric-learning
    python docs/examples/another_loss.py photos --loss multi_similarity

``photos`` has one folder for each class, and at least four of them. Whether introspection helps is shown only by the
same loss without it, so the script trains both from the same weights on the same batches. It prints both losses for
each epoch, then Recall@1 of both on the classes that did not train. Without PML it says so and stops with status 2.
24 images take about 15 s on one CPU core.

One run says little: compare several seeds, as docs/protocol.md explains. For a loss of your own: docs/extending.md.
"""

import argparse
from importlib.util import find_spec
from typing import Any

import torch
from torch.utils.data import DataLoader

import idml_zoo
from idml_zoo.data.images import ImageDataset
from idml_zoo.data.loading.sampler import PKSampler
from idml_zoo.losses.bridge import pack

LOSSES = {"triplet": "TripletMarginLoss", "ntxent": "NTXentLoss", "multi_similarity": "MultiSimilarityLoss"}

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("images", help="folder with one folder of images for each class")
parser.add_argument("--loss", choices=sorted(LOSSES), default="multi_similarity")
parser.add_argument("--epochs", type=int, default=5)
parser.add_argument("--seed", type=int, default=0)


def train(loss: Any, introspective: bool, args: argparse.Namespace) -> float:
    """Prints the mean loss of each epoch; returns Recall@1 on the test classes, in [0, 1]."""
    torch.manual_seed(args.seed)
    splits = idml_zoo.table_benchmark("mine", args.images).splits()
    model = idml_zoo.create_model("idml", backbone="test_resnet", embedding_dim=64)
    model.transform = model.transform.replace(image_size=64)
    data = ImageDataset(splits.train, idml_zoo.create_transforms(model)[0])
    classes = min(8, splits.train.num_classes)  # pairs of a class need batches of P classes × K images
    sampler = PKSampler(splits.train.labels, classes, images_per_class=4, seed=args.seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for epoch in range(args.epochs):
        sampler.set_epoch(epoch)
        model.train()
        values = []
        for images, labels, _ in DataLoader(data, batch_sampler=sampler):
            embedding = model(images)
            # PML sees one tensor for each image: [semantic | uncertainty] side by side, or the semantic half alone
            value = loss(pack(embedding) if introspective else embedding.semantic, labels)
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
            values.append(value.item())
        kind = "introspective" if introspective else "plain"
        print(f"{kind}, epoch {epoch + 1}: loss {sum(values) / len(values):.3f}")
    test = idml_zoo.embed(model, splits.test, device="cpu", progress=False)
    return idml_zoo.evaluate_embeddings(test, splits.test.labels, ks=(1,), cluster_seeds=())["recall@1"] or 0.0


def main(args: argparse.Namespace) -> None:
    if find_spec("pytorch_metric_learning") is None:
        parser.exit(2, "pytorch-metric-learning is not installed: pip install pytorch-metric-learning\n")
    from pytorch_metric_learning import losses

    from idml_zoo.losses.bridge import IntrospectiveDistance, IntrospectiveSimilarity

    # a loss over distances takes IntrospectiveDistance, one over similarities IntrospectiveSimilarity
    distance = IntrospectiveDistance(tau=5.0) if args.loss == "triplet" else IntrospectiveSimilarity(tau=5.0)
    made = getattr(losses, LOSSES[args.loss])
    plain, introspective = train(made(), False, args), train(made(distance=distance), True, args)
    print(f"Recall@1 of seed {args.seed}: plain {plain:.1%}, introspective {introspective:.1%}")


if __name__ == "__main__":
    main(parser.parse_args())
