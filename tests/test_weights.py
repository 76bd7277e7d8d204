"""Saving and loading: the same network comes back, and a stranger's files are refused before they can do harm."""

import copy
import json
import os
import pickle
import struct
import time

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

import idml_zoo
from idml_zoo import probe
from idml_zoo.card import check_card
from idml_zoo.registry import benchmarks
from idml_zoo.results import read_results
from idml_zoo.weights import BACKBONE_OPTIONS, WeightsError, parse_config, read_tensors, sha256_of
from idml_zoo.zoo import EMBEDDED, PUBLISHED

IMAGES = torch.linspace(-1, 1, 2 * 3 * 64 * 64).view(2, 3, 64, 64).sin()


def small(**options):
    torch.manual_seed(0)
    return idml_zoo.create_model("idml", backbone="test_resnet", embedding_dim=16, **options)


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    model = small()
    return model, model.save_pretrained(tmp_path_factory.mktemp("saved") / "model", benchmark="glyphs", seed=3)


@pytest.fixture
def saved(original, tmp_path):
    """A copy of the saved folder, to be damaged."""
    folder = tmp_path / "model"
    folder.mkdir()
    for path in original[1].iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


def load(folder, **options):
    return idml_zoo.create_model(f"local-dir:{folder}", pretrained=True, **options)


def refused(folder, seconds=2.0):
    """The message with which a folder is refused, which must come quickly."""
    start = time.perf_counter()
    with pytest.raises(WeightsError) as caught:
        load(folder)
    assert time.perf_counter() - start < seconds
    assert str(caught.value).count("\n") == 0
    return str(caught.value)


def edit(folder, **changes):
    """Changes keys of the configuration; a double underscore goes one level down."""
    path = folder / "config.json"
    content = json.loads(path.read_text())
    for key, value in changes.items():
        *above, last = key.split("__")
        place = content
        for name in above:
            place = place[name]
        place[last] = value
    path.write_text(json.dumps(content))


def test_save_and_load_give_the_same_embedding(original):
    model, folder = original
    again = load(folder)
    assert torch.equal(model(IMAGES).semantic, again(IMAGES).semantic)
    assert torch.equal(model(IMAGES).uncertainty, again(IMAGES).uncertainty)
    assert again.transform == model.transform
    assert again.origin.sha256 == sha256_of(folder / "model.safetensors")
    assert again.origin.spec.meta == {"benchmark": "glyphs", "seed": 3}
    fresh = idml_zoo.create_model(f"local-dir:{folder}")
    assert not torch.equal(model(IMAGES).semantic, fresh(IMAGES).semantic)
    assert fresh.origin is None
    with pytest.raises(ValueError, match="leave out embedding_dim"):
        idml_zoo.create_model(f"local-dir:{folder}", embedding_dim=8)


def test_what_was_said_of_weights_goes_with_them_until_they_are_trained(original, tmp_path):
    loaded = load(original[1])
    again = load(loaded.save_pretrained(tmp_path / "again", tau=1.0))
    assert again.origin.spec.meta == {"benchmark": "glyphs", "seed": 3, "tau": 1.0} and again.tau == 1.0
    with torch.no_grad():
        again.head.semantic.weight.mul_(1.01)
    other = load(again.save_pretrained(tmp_path / "other", variant="mine"))
    assert other.origin.spec.meta == {"tau": 1.0, "variant": "mine"}, "of other weights nothing was said"
    assert loaded.origin.still(loaded) and not again.origin.still(again)
    loaded.head.more = torch.nn.Linear(2, 2)
    assert not loaded.origin.still(loaded)


def test_a_result_says_which_weights_were_measured(original, tmp_path):
    from conftest import make_folder

    mine = idml_zoo.table_benchmark("mine", make_folder(tmp_path / "photos"))
    how = {"progress": False, "cluster_seeds": (0,), "device": "cpu"}
    model = load(original[1])
    result = idml_zoo.evaluate(model, mine, **how)
    assert result.provenance.weights_sha256 == model.origin.sha256 and result.protocol.checkpoint == "last"
    assert idml_zoo.evaluate(model, mine, variant="pa", **how).model.variant == "pa", "what one says goes first"
    with torch.no_grad():
        model.head.semantic.weight.mul_(1.01)
    trained = idml_zoo.evaluate(model, mine, **how)
    assert trained.provenance.weights_sha256 is None and trained.model.pretrained.startswith("begun from weights")
    plain = idml_zoo.evaluate(small(), mine, **how)
    assert (plain.model.pretrained, plain.model.variant, plain.protocol.checkpoint) == ("none", "none", "none")


def test_keywords_of_other_libraries_are_no_metadata(original, tmp_path):
    with pytest.raises(TypeError, match="commit_message is no argument here: .* message="):
        original[0].push_to_hub("user/name", commit_message="first")
    with pytest.raises(TypeError, match="push_to_hub is no argument"):
        original[0].save_pretrained(tmp_path / "m", push_to_hub=True)
    assert not (tmp_path / "m").exists()


def test_the_configuration_says_everything(original):
    content = json.loads((original[1] / "config.json").read_text())
    assert set(content) == {"format", "idml_zoo", "versions", "model", "transform", "probe", "meta"}
    assert content["model"]["backbone"] == "test_resnet"
    assert set(content["versions"]) == {"torch", "torchvision", "timm", "pillow"}
    assert len(content["probe"]["semantic"]) == len(content["probe"]["uncertainty"]) == 16


def test_files_are_readable_by_others_and_leave_nothing_behind(original):
    assert {p.name for p in original[1].iterdir()} == {"config.json", "model.safetensors"}
    assert (original[1] / "model.safetensors").stat().st_mode & 0o044 == 0o044


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_halves_the_file_and_loads_as_float32(tmp_path, original, dtype):
    model, whole = original
    folder = model.save_pretrained(tmp_path / "half", dtype=dtype)
    assert next(model.parameters()).dtype == torch.float32, "the model itself is left as it is"
    size, full = ((f / "model.safetensors").stat().st_size for f in (folder, whole))
    assert size < 0.55 * full
    again = load(folder)
    assert next(again.parameters()).dtype == torch.float32
    cosine = (again(IMAGES).semantic * model(IMAGES).semantic).sum(1)
    assert (cosine > 0.99).all()


def test_a_model_in_half_precision_or_in_training_is_saved_too(tmp_path):
    model = small().half().train()
    assert load(model.save_pretrained(tmp_path / "m")).head.semantic.weight.dtype == torch.float32
    assert model.training


def test_a_model_in_double_precision_is_saved_as_it_can_be_loaded(tmp_path, original):
    model, _ = original
    twin = copy.deepcopy(model).double()
    again = idml_zoo.create_model(f"local-dir:{twin.save_pretrained(tmp_path / 'model')}", pretrained=True)
    assert all(v.dtype != torch.float64 for v in load_file(tmp_path / "model" / "model.safetensors").values())
    assert torch.equal(again.head.semantic.weight, model.head.semantic.weight)


def test_what_is_too_large_for_half_precision_is_told(tmp_path, original):
    model = copy.deepcopy(original[0])
    next(b for n, b in model.named_buffers() if n.endswith("running_var")).fill_(1e5)
    with pytest.raises(ValueError, match=r"running_var is too large for torch.float16; save it in bfloat16"):
        model.save_pretrained(tmp_path / "half", dtype=torch.float16)
    model.save_pretrained(tmp_path / "brain", dtype=torch.bfloat16)


def test_the_memory_format_does_not_matter(tmp_path, original):
    model = small().to(memory_format=torch.channels_last)
    again = load(model.save_pretrained(tmp_path / "m"))
    assert torch.equal(again(IMAGES).semantic, original[0](IMAGES).semantic)


def test_format_1_without_probe_is_read(saved):
    content = json.loads((saved / "config.json").read_text())
    del content["probe"], content["versions"]
    (saved / "config.json").write_text(json.dumps(content | {"format": 1}))
    assert load(saved).origin.spec.probe is None


def test_a_changed_outcome_is_refused_by_the_probe(saved):
    edit(saved, transform__mean=[0.4, 0.5, 0.5])
    message = refused(saved)
    assert "embedding of the probe image" in message
    assert "no version has changed" in message
    edit(saved, versions__timm="0.1")
    assert "timm 0.1 → " in refused(saved)
    assert load(saved, verify=False).transform.mean == (0.4, 0.5, 0.5)


def test_the_probe_is_the_same_picture_everywhere():
    import hashlib

    assert hashlib.sha256(probe.probe_image().tobytes()).hexdigest()[:16] == "0ef01ca41851b4cc"


def test_the_difference_of_probes():
    a = {"image": probe.NAME, "semantic": [0.6, 0.8], "uncertainty": [0.0, 0.1]}
    assert probe.difference(a, a) == 0
    assert probe.difference(a, a | {"semantic": [0.6, 0.79]}) == pytest.approx(0.01)
    assert probe.difference(a, a | {"uncertainty": [0.0, 0.11]}) == pytest.approx(0.1)
    assert probe.difference(a, a | {"semantic": [0.6]}) == float("inf")
    with pytest.raises(ValueError, match="this version knows"):
        probe.difference(a | {"image": "cat-7"}, a)
    with pytest.raises(ValueError, match="two lists of numbers"):
        probe.difference(a | {"semantic": ["x"]}, a)


def test_what_could_not_be_loaded_is_not_saved(tmp_path):
    model = small()
    model.config["backbone_options"] = {"depth": 3}
    with pytest.raises(ValueError, match="could be saved but not loaded.*depth"):
        model.save_pretrained(tmp_path / "m")
    model = small()
    with torch.no_grad():
        model.head.semantic.weight[0, 0] = torch.nan
    with pytest.raises(ValueError, match=r"head.semantic.weight holds NaN"):
        model.save_pretrained(tmp_path / "m")
    assert not (tmp_path / "m").exists()


# hostile weights


def tensors(folder):
    return {k: v.clone() for k, v in load_file(folder / "model.safetensors").items()}


def header(path):
    data = path.read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def write_raw(path, head, body):
    text = json.dumps(head).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + body)


def spoil_weights(folder, how):
    path = folder / "model.safetensors"
    state, whole = tensors(folder), path.read_bytes()
    head, body = header(path)
    first, second = list(head)[1:3]
    if how == "pickle":
        path.write_bytes(pickle.dumps({"a": 1}))
    elif how == "torch zip":
        torch.save(state, path)
    elif how == "cut in the header":
        path.write_bytes(whole[:50])
    elif how == "cut in the tensors":
        path.write_bytes(whole[: len(whole) // 2])
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "header of 2^63 bytes":
        path.write_bytes(struct.pack("<Q", 1 << 63) + whole[8:])
    elif how == "header of a gigabyte":
        with path.open("wb") as file:
            file.write(struct.pack("<Q", 1 << 30) + b"{")
            file.truncate(2 << 30)  # sparse
    elif how == "overlapping offsets":
        head[second]["data_offsets"] = head[first]["data_offsets"]
        write_raw(path, head, body)
    elif how == "offsets beyond the file":
        head[second]["data_offsets"] = [1 << 40, (1 << 40) + 4]
        write_raw(path, head, body)
    elif how == "trailing bytes":
        path.write_bytes(whole + b"0" * 64)
    elif how == "integers":
        save_file({k: v.to(torch.int32) if v.is_floating_point() else v for k, v in state.items()}, path)
    elif how == "float64":
        save_file({k: v.double() if v.is_floating_point() else v for k, v in state.items()}, path)
    elif how == "NaN":
        save_file(state | {"head.semantic.bias": torch.full((16,), torch.nan)}, path)
    elif how == "inf":
        save_file(state | {"head.semantic.bias": torch.full((16,), -torch.inf)}, path)
    elif how == "wrong shape":
        save_file(state | {"head.semantic.bias": torch.zeros(17)}, path)
    elif how == "missing key":
        save_file({k: v for k, v in state.items() if k != "head.semantic.bias"}, path)
    elif how == "extra key":
        save_file(state | {"../../etc/passwd": torch.zeros(1)}, path)
    elif how == "outward link":
        outside = folder.parent / "outside.safetensors"
        outside.write_bytes(whole)
        path.unlink()
        path.symlink_to(outside)
    elif how == "link to itself":
        path.unlink()
        path.symlink_to(path)
    elif how == "fifo":
        path.unlink()
        os.mkfifo(path)
    elif how == "folder":
        path.unlink()
        path.mkdir()
    elif how == "missing":
        path.unlink()


HOSTILE_WEIGHTS = {
    "pickle": "looks like a pickle",
    "torch zip": "looks like a pickle",
    "cut in the header": "not a whole safetensors file",
    "cut in the tensors": "not a whole safetensors file",
    "empty": "not a whole safetensors file",
    "header of 2^63 bytes": "not a whole safetensors file",
    "header of a gigabyte": "has 2,147,483,648 bytes, the network",
    "overlapping offsets": "not a whole safetensors file",
    "offsets beyond the file": "not a whole safetensors file",
    "trailing bytes": "not a whole safetensors file",
    "integers": "of another type",
    "float64": "of another type",
    "NaN": "holds NaN or inf, in head.semantic.bias",
    "inf": "holds NaN or inf, in head.semantic.bias",
    "wrong shape": r"1 of another shape ['head.semantic.bias']",
    "missing key": "1 tensors missing ['head.semantic.bias']",
    "extra key": "1 unknown ['../../etc/passwd']",
    "outward link": "outside of its folder",
    "link to itself": "has a configuration but no weights",
    "fifo": "not a regular file",
    "folder": "not a regular file",
    "missing": "has a configuration but no weights",
}


@pytest.mark.parametrize("how", HOSTILE_WEIGHTS)
def test_hostile_weights_are_refused(saved, how):
    spoil_weights(saved, how)
    assert HOSTILE_WEIGHTS[how] in refused(saved)


def test_the_cache_of_the_hub_may_link_to_its_blobs(saved, tmp_path):
    snapshot, blobs = tmp_path / "models--a--b" / "snapshots" / "c0ffee", tmp_path / "models--a--b" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for name in ("config.json", "model.safetensors"):
        (saved / name).rename(blobs / f"{name}-blob")
        (snapshot / name).symlink_to(f"../../blobs/{name}-blob")
    assert load(snapshot).config["head"] == "idml"


# hostile configurations


def deep(levels):
    return "[" * levels + "]" * levels


HOSTILE_CONFIGS = {
    "unknown key": ({"surprise": 1}, "unknown surprise"),
    "unknown model key": ({"model__code": "import os"}, "unknown code"),
    "format of the future": ({"format": 3}, "reads 1 and 2"),
    "boolean format": ({"format": True}, "reads 1 and 2"),
    "backbone from the Hub": ({"model__backbone": "hf-hub:evil/model"}, "backbone must be a plain name"),
    "backbone from a path": ({"model__backbone": "../../tmp/net"}, "backbone must be a plain name"),
    "backbone of another kind": ({"model__backbone": ["resnet50"]}, "backbone must be a plain name"),
    "unknown backbone": ({"model__backbone": "resnet_9000"}, "unknown backbone"),
    "unknown head": ({"model__head": "os.system"}, "unknown head"),
    "path in an option": ({"model__backbone_options": {"checkpoint_path": "a"}}, "may not have checkpoint_path"),
    "pretrained option": ({"model__backbone_options": {"pretrained": True}}, "may not have pretrained"),
    "file option": ({"model__backbone_options": {"pretrained_cfg": {"file": "/etc/x"}}}, "plain values"),
    "endless depth": ({"model__backbone_options": {"depth": 50000}}, "may not have depth"),
    "unknown head option": ({"model__head_options": {"eval": 1}}, "cannot be built"),
    "huge width": ({"model__embedding_dim": 10**9}, "embedding_dim must be in 1–65536"),
    "large width": ({"model__embedding_dim": 65536}, "does not fit its configuration"),
    "width of another kind": ({"model__embedding_dim": "16"}, "embedding_dim must be in"),
    "another network": ({"model__backbone": "vit_giant_patch14_dinov2", "model__pooling": "native"}, "does not fit"),
    "pooling": ({"model__pooling": "sum"}, "unknown pooling 'sum'"),
    "huge image": ({"transform__image_size": 10**6}, "up to 4096"),
    "crop that makes it huge": ({"transform__crop_fraction": 1e-9}, "crop_fraction must be 0.1 to 1"),
    "image of another kind": ({"transform__image_size": 64.5}, "up to 4096"),
    "transform key": ({"transform__loader": "x"}, "bad 'transform'"),
    "transform list": ({"transform": []}, "'transform' must be an object"),
    "two means": ({"transform__mean": [0.5, 0.5]}, "mean must be 3 numbers"),
    "no std": ({"transform__std": [0.0, 0.5, 0.5]}, "std must be"),
    "probe of another image": ({"probe__image": "cat"}, "this version knows"),
    "probe of words": ({"probe__semantic": ["x"] * 16}, "two lists of numbers"),
    "probe of huge numbers": ({"probe__semantic": [10**400] * 16}, "two lists of numbers"),
    "probe of another network": ({"probe__semantic": [0.25] * 16}, "embedding of the probe image"),
    "meta list": ({"meta": []}, "'meta' must be an object"),
}


@pytest.mark.parametrize("what", HOSTILE_CONFIGS)
def test_hostile_configurations_are_refused(saved, what):
    changes, message = HOSTILE_CONFIGS[what]
    edit(saved, **changes)
    assert message in refused(saved)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not readable JSON"),
        ("{", "not readable JSON"),
        (deep(100_000), "not readable JSON"),
        ('{"format": 2, "format": 2}', "a key stands there twice"),
        ('{"format": NaN}', "is not a number"),
        ('{"format": 1e999}', "is not a number"),
        ("[]", "must hold an object"),
        ('{"format": 2}', "missing idml_zoo, meta, model, probe, transform, versions"),
    ],
)
def test_broken_json_is_refused(saved, text, message):
    (saved / "config.json").write_text(text)
    assert message in refused(saved)


def test_a_gigabyte_of_json_is_not_read(saved):
    with (saved / "config.json").open("wb") as file:
        file.truncate(1 << 30)  # sparse
    assert "1,073,741,824 bytes" in refused(saved, seconds=0.2)


def test_bytes_that_are_no_text_are_refused(saved):
    (saved / "config.json").write_bytes(b"\xff\xfe\x00")
    assert "not readable JSON" in refused(saved)


def test_no_folder_and_an_empty_folder_are_named(tmp_path):
    assert "no folder" in refused(tmp_path / "nowhere")
    assert "expected a folder written by save_pretrained" in refused(tmp_path)


FUZZ = settings(
    max_examples=int(os.environ.get("IDML_ZOO_FUZZ", "300")),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
LEAF = st.none() | st.booleans() | st.integers(-(10**6), 10**6) | st.floats() | st.text(max_size=8)
SHALLOW = LEAF | st.lists(LEAF, max_size=3) | st.dictionaries(st.text(max_size=8), LEAF, max_size=3)
JSON = SHALLOW | st.lists(SHALLOW, max_size=3) | st.dictionaries(st.text(max_size=8), SHALLOW, max_size=3)


@FUZZ
@given(data=st.data())
def test_fuzzed_weights_load_or_are_refused(original, tmp_path_factory, data):
    """Any bytes in any place: the same tensors, or a WeightsError, and nothing else."""
    model, folder = original
    whole = bytearray((folder / "model.safetensors").read_bytes())
    length = struct.unpack("<Q", whole[:8])[0]
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, length + 64))  # length, header and the first values
        new = data.draw(st.binary(min_size=1, max_size=8))
        if data.draw(st.booleans()):
            whole[place : place + len(new)] = new
        else:
            whole[place:place] = new
    if data.draw(st.booleans()):
        del whole[data.draw(st.integers(0, len(whole))) :]
    path = tmp_path_factory.getbasetemp() / "fuzzed.safetensors"
    path.write_bytes(whole)
    expected = model.state_dict()
    try:
        state = read_tensors(path, expected)
    except WeightsError:
        return
    assert {k: v.shape for k, v in state.items()} == {k: v.shape for k, v in expected.items()}


@FUZZ
@given(
    key=st.sampled_from(["model", "transform", "probe", "versions", "meta", "format", None]), value=JSON, data=st.data()
)
def test_fuzzed_configurations_parse_or_are_refused(original, key, value, data):
    content = json.loads((original[1] / "config.json").read_text())
    if key is None:
        content = value
    elif isinstance(content[key], dict) and data.draw(st.booleans()):
        content[key][data.draw(st.sampled_from(sorted(content[key])) | st.text(max_size=8))] = value
    else:
        content[key] = value
    try:
        spec = parse_config(json.dumps(content), "config.json")
    except WeightsError:
        return
    assert set(spec.model["backbone_options"]) <= BACKBONE_OPTIONS
    assert isinstance(spec.transform.image_size, int)


@FUZZ
@given(st.binary(max_size=200))
def test_fuzzed_files_are_refused(original, tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "anything.safetensors"
    path.write_bytes(content)
    with pytest.raises(WeightsError):
        read_tensors(path, original[0].state_dict())


@pytest.mark.parametrize("name", [name for name, weights in PUBLISHED.items() if weights.repo is None])
def test_weights_that_come_with_the_package(name):
    """Small, with a card of their result, and the picture in their file is embedded as it was when they were stored."""
    folder = EMBEDDED / name
    assert check_card(folder) == [] and (folder / "model.safetensors").stat().st_size < 10_000_000
    assert sum(p.stat().st_size for p in (folder / "results").rglob("*")) < 1 << 20
    (result,) = read_results(folder / "results")
    model = idml_zoo.create_model(name, pretrained=True)
    assert result.provenance.weights_sha256 == model.origin.sha256 == PUBLISHED[name].sha256
    found = probe.measure(model, idml_zoo.create_transforms(model)[1])
    assert probe.difference(model.origin.spec.probe, found) < 1e-3
    assert model.origin.spec.meta["variant"] == result.model.variant and result.protocol.split == "test"
    if benchmarks[result.benchmark].embedded:
        measured = idml_zoo.evaluate(model, result.benchmark, row="again", cluster_seeds=(0,), progress=False)
        for metric in ("recall@1", "recall@8", "map@r", "auroc_level", "spearman_severity"):
            assert measured.metrics[metric] == pytest.approx(result.metrics[metric], abs=1e-3), metric


def test_numpy_is_no_way_in(saved):
    """Object arrays are pickles; the loader never sees them."""
    np.save(saved / "model.npy", np.array([{}], dtype=object))
    (saved / "model.npy").rename(saved / "model.safetensors")
    assert "not a whole safetensors file" in refused(saved)
