"""Search a folder of images with one of them, and refuse to answer where the query is too uncertain.

    python docs/examples/search_in_a_folder.py photos photo.jpg

``photos`` is searched in all its depth; labels are not needed. The script prints the uncertainty level ‖u‖ of the
query, then its nearest images, each with its cosine similarity and its own level. A query above --max-uncertainty is
declined. Without that option the limit is the level that 95 % of the folder's images stay below: levels of two models
cannot be compared, so no fixed limit fits all. 1,000 images take about a minute on one CPU core.

The default weights know birds, cropped to the bird; other images get neighbours too, but look at them first.
`idml-zoo search` does the same from the command line, keeps the embeddings in a file and makes a page of the pictures.
"""

import argparse
from pathlib import Path

import idml_zoo
from idml_zoo.reports.photos import embed_photos, find_photos

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("images", type=Path, help="folder to search in")
parser.add_argument("query", type=Path, nargs="+", help="image files to search for")
parser.add_argument("--model", default="idml_tf_efficientnet_lite0_cub2010", help="name, or local-dir:FOLDER")
parser.add_argument("--k", type=int, default=5, help="neighbours of each query (default 5)")
parser.add_argument("--max-uncertainty", type=float, metavar="LEVEL", help="decline queries above this level")


def main(args: argparse.Namespace) -> None:
    model = idml_zoo.create_model(args.model, pretrained=True)
    files = find_photos(args.images)
    kept, gallery, broken = embed_photos(model, files, device="cpu", progress=False)
    kept_queries, queries, broken_queries = embed_photos(model, args.query, device="cpu", progress=False)
    for line in broken + broken_queries:
        print(f"left out: {line}")
    if gallery is None or queries is None:
        raise SystemExit("no image can be read: nothing to search")

    limit = args.max_uncertainty
    if limit is None:
        limit = gallery.level.quantile(0.95).item()
    k = min(args.k, len(gallery))
    near = idml_zoo.search(queries, gallery, k, metric=model.metric, max_uncertainty=limit)  # model.metric: the cosine
    assert near.declined is not None  # it is there whenever max_uncertainty is given
    print(f"{len(gallery)} images; queries with a level above {limit:.3g} are declined")
    for row, place in enumerate(kept_queries):
        print(f"{args.query[place]}: level {queries.level[row]:.3g}")
        if near.declined[row]:
            print("  declined: too uncertain to be answered")
            continue
        for score, image in zip(near.scores[row].tolist(), near.indices[row].tolist(), strict=True):
            print(f"  {score:.3f}  {files[kept[image]]}  level {gallery.level[image]:.3g}")


if __name__ == "__main__":
    main(parser.parse_args())
