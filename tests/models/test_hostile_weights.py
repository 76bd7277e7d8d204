"""A stranger's files are refused before they can do harm, with one line that says why."""

import json
import os
import pickle
import struct

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from support.fuzzing import FUZZ, JSON
from support.saved_models import edit, load, refused

from idml_zoo.models.files import BACKBONE_OPTIONS, WeightsError, parse_config, read_tensors


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


VIT = {"model__pooling": "native"}
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
    "file option": ({"model__backbone_options": {"pretrained_cfg": {"file": "/etc/x"}}}, "may not have pretrained_cfg"),
    "nested option": ({"model__backbone_options": {"img_size": {"file": "/etc/x"}}}, "plain values"),
    "endless depth": ({"model__backbone_options": {"depth": 50000}}, "may not have depth"),
    "unknown head option": ({"model__head_options": {"eval": 1}}, "cannot be built"),
    "huge width": ({"model__embedding_dim": 10**9}, "embedding_dim must be in 1–8192"),
    "large width": ({"model__embedding_dim": 8192}, "does not fit its configuration"),
    "larger width": ({"model__embedding_dim": 65536}, "embedding_dim must be in 1–8192"),
    "width of another kind": ({"model__embedding_dim": "16"}, "embedding_dim must be in"),
    "another network": (
        {"model__backbone": "vit_base_patch16_224", **VIT, "transform__image_size": 224},
        "does not fit",
    ),
    "a giant": ({"model__backbone": "vit_giant_patch14_dinov2", **VIT}, "parameters, at most 450,000,000; where you"),
    "patches of a pixel": (
        {"model__backbone": "test_vit", **VIT, "model__backbone_options": {"patch_size": 1}},
        "of activations at one time, at most 1 GB",
    ),
    "a thousand patches each way": (
        {"model__backbone": "test_vit", **VIT, "transform__image_size": 1600}
        | {"model__backbone_options": {"dynamic_img_size": True, "patch_size": 2}},
        "costs too much",
    ),
    "no strides": (
        {"model__backbone": "resnet101", "transform__image_size": 1500}
        | {"model__backbone_options": {"output_stride": 8}},
        "costs too much",
    ),
    "masks without end": (
        {"model__backbone": "swin_tiny_patch4_window7_224", **VIT}
        | {"model__backbone_options": {"img_size": 16384, "window_size": 64}},
        "of buffers, at most",
    ),
    "image of another size": (
        {"model__backbone": "vit_small_patch16_224", **VIT, "transform__image_size": 128},
        "does not take an image of 128 pixels",
    ),
    "pooling": ({"model__pooling": "sum"}, "unknown pooling 'sum'"),
    "huge image": ({"transform__image_size": 10**6}, "up to 2048"),
    "crop that makes it huge": ({"transform__crop_fraction": 1e-9}, "images are resized to, must be up to 2048"),
    "crop that makes it large": (
        {"transform__image_size": 2048, "transform__crop_fraction": 0.1},
        "must be up to 2048 pixels, got 2048 / 0.1",
    ),
    "boolean image": ({"transform__image_size": True}, "image_size must be a whole number"),
    "image of another kind": ({"transform__image_size": 64.5}, "up to 2048"),
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


def test_numpy_is_no_way_in(saved):
    """Object arrays are pickles; the loader never sees them."""
    np.save(saved / "model.npy", np.array([{}], dtype=object))
    (saved / "model.npy").rename(saved / "model.safetensors")
    assert "not a whole safetensors file" in refused(saved)
