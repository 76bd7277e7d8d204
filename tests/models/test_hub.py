"""The real huggingface_hub client against a Hub on loopback: push, pull, resume, offline, and every way to fail."""

import io
import json
import os
import subprocess
import sys

import pytest
import torch
from conftest import ROOT
from support.model_hub import READ, WRITE, Repo

import idml_zoo
from idml_zoo.models.files import WeightsError
from idml_zoo.models.hub import HubError, fetch, split_name
from idml_zoo.models.zoo import PUBLISHED, Weights


@pytest.fixture
def published(hub, model):
    """The model, on the Hub, and its commit."""
    return model.push_to_hub("user/birds", token=WRITE, benchmark="cub")


IMAGES = torch.linspace(-1, 1, 3 * 64 * 64).view(1, 3, 64, 64).sin()


def pull(name="user/birds", **options):
    return idml_zoo.create_model(f"hf-hub:{name}", pretrained=True, **options)


def test_push_and_pull_give_the_same_model(hub, model, published):
    again = pull()
    assert torch.equal(again(IMAGES).semantic, model(IMAGES).semantic)
    assert again.origin.source == "user/birds"
    assert again.origin.revision == published
    assert again.origin.spec.meta == {"benchmark": "cub"}
    assert sum("/commit/" in r for r in hub.requests) == 1, "one commit"
    fresh = idml_zoo.create_model("hf-hub:user/birds")
    assert not torch.equal(fresh(IMAGES).semantic, model(IMAGES).semantic)


def test_revisions(hub, model, published):
    with torch.no_grad():
        model.head.semantic.bias += 1
        try:
            second = model.push_to_hub("user/birds", token=WRITE, revision="next")
            assert not torch.equal(pull(revision="next")(IMAGES).semantic, pull()(IMAGES).semantic)
            assert pull("user/birds@next").origin.revision == second
            assert pull(revision=published).origin.revision == published
        finally:
            model.head.semantic.bias -= 1
    with pytest.raises(HubError, match="no revision user/birds at nowhere"):
        pull(revision="nowhere")
    with pytest.raises(ValueError, match="names a revision already"):
        pull("user/birds@next", revision="main")
    with pytest.raises(ValueError, match="revision= is for"):
        idml_zoo.create_model("idml_resnet50_cub", revision="main")


def test_the_cache_serves_without_a_connection(hub, published, monkeypatch):
    from huggingface_hub import constants

    pull()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert pull().origin.revision == published
    with pytest.raises(HubError, match="HF_HUB_OFFLINE is set: load it once with a connection"):
        pull("user/other")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    hub.failures.append([".", 503, 1000])
    assert pull().origin.revision == published, "the Hub is down, the cache is there"


def test_a_cut_connection_is_resumed(hub, published):
    sha = next(iter(hub.lfs))
    hub.cut[sha] = 100_000
    assert pull().origin.revision == published
    assert hub.ranges == ["bytes=100000-"]


def test_content_with_another_hash_is_refused(hub, published):
    hub.corrupt.update(hub.lfs)
    with pytest.raises(WeightsError, match=r"not the sha256 that the Hub says .* delete .* and try again"):
        pull()


def test_a_push_that_arrives_damaged_is_noticed(hub, model):
    first = model.push_to_hub("user/birds", token=WRITE)
    assert len(first) == 40
    hub.corrupt.update(hub.lfs)
    with pytest.raises(WeightsError, match="not the sha256"):
        model.push_to_hub("user/other", token=WRITE)


def test_a_named_model_is_pinned_to_commit_and_hash(hub, published, monkeypatch):
    from idml_zoo.models.zoo import models

    sha = pull().origin.sha256
    name = "idml_test_resnet_cub"
    record = models[name]
    monkeypatch.setitem(
        models._entries, name, type(record)(**{**vars(record), "weights": Weights(sha, "user/birds", published)})
    )
    assert name in idml_zoo.list_models(pretrained=True)
    assert idml_zoo.create_model(name, pretrained=True).origin.revision == published
    other = Weights("0" * 64, "user/birds", published)
    monkeypatch.setitem(models._entries, name, type(record)(**{**vars(record), "weights": other}))
    with pytest.raises(WeightsError, match="expected 000000000000…: other weights, or damaged ones"):
        idml_zoo.create_model(name, pretrained=True)
    with pytest.raises(ValueError, match="leave out embedding_dim"):
        idml_zoo.create_model(name, pretrained=True, embedding_dim=8)


def test_a_private_repository_needs_a_token(hub, model):
    model.push_to_hub("user/secret", token=WRITE, private=True)
    with pytest.raises(HubError, match="or it is private: check the name; `hf auth login`"):
        pull("user/secret")
    assert pull("user/secret", token=READ).origin.source == "user/secret"


def test_a_gated_repository_asks_for_consent(hub, published):
    hub.repos["user/birds"].gated = True
    with pytest.raises(HubError, match="accept its terms"):
        pull()


def test_a_renamed_repository_is_followed(hub, published):
    hub.repos["user/old"] = Repo(moved_to="user/birds")
    assert pull("user/old").origin.revision == published


@pytest.mark.parametrize(
    ("token", "message"),
    [("", "401|token is not valid"), (READ, "no right to this"), ("hf_nonsense", "token is not valid")],
)
def test_pushing_without_the_right_is_one_clear_error(hub, model, token, message):
    with pytest.raises(HubError, match=message) as caught:
        model.push_to_hub("user/birds", token=token or False)
    assert str(caught.value).count("\n") == 0


@pytest.mark.parametrize(("status", "times"), [(500, 1), (503, 2), (429, 1)])
def test_the_clients_own_retries_survive_a_hiccup(hub, published, status, times):
    if status == 429:  # all that it retries while downloading
        hub.failures.append(["GET /cdn", status, times])
        assert pull().origin.revision == published
    hub.failures.append(["objects/batch", status, times])
    torch.manual_seed(1)
    assert idml_zoo.create_model("idml", backbone="test_resnet", embedding_dim=4).push_to_hub("user/b", token=WRITE)


@pytest.mark.parametrize("status", [500, 429, 403, 404])
def test_a_lasting_failure_is_one_clear_error(hub, published, status):
    hub.failures.append(["(GET|HEAD) /user/birds", status, 10_000])
    with pytest.raises(HubError) as caught:
        pull()
    assert "user/birds" in str(caught.value)
    assert hub.url in str(caught.value)
    assert str(caught.value).count("\n") == 0


def test_a_hub_that_is_not_there(hub, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", "http://127.0.0.1:9/{repo_id}/resolve/{revision}/{filename}"
    )
    with pytest.raises(HubError, match="cannot reach user/birds on http://127.0.0.1:9"):
        pull()


def test_a_repository_that_is_no_model(hub, published):
    hub.repos["user/data"] = Repo()
    hub.repos["user/data"].commit({"table.csv": b"1"})
    with pytest.raises(HubError, match="is no model of idml_zoo: it lacks config.json"):
        pull("user/data")


def test_too_large_files_are_not_downloaded(hub, published):
    repo = hub.repos["user/birds"]
    good = repo.commits[published]
    repo.commit({"config.json": b" " * (2 << 20)})
    with pytest.raises(WeightsError, match=r"config.json of user/birds has 2,097,152 bytes .* not downloaded"):
        pull()
    repo.commit({"config.json": good["config.json"], "model.safetensors": b"0" * (20 << 20)})
    before = len(hub.requests)
    with pytest.raises(WeightsError, match=r"model.safetensors of user/birds has 20,971,520 bytes"):
        pull()
    assert not [r for r in hub.requests[before:] if r.startswith("GET") and "safetensors" in r]


def test_code_in_a_repository_is_not_run(hub, published, tmp_path):
    mark = tmp_path / "ran"
    code = f"open({str(mark)!r}, 'w')".encode()
    hub.repos["user/birds"].commit({"modeling.py": code, "__init__.py": code, "setup.py": code, "config.py": code})
    pull()
    assert not mark.exists()
    assert not [r for r in hub.requests if r.endswith(".py")]


@pytest.mark.parametrize(
    "name", ["birds", "user/../birds", "../../etc", "user/birds/more", "/user/birds", "us er/birds"]
)
def test_names_that_are_no_repositories(name):
    with pytest.raises(ValueError, match="expected user/name"):
        split_name(name)


def test_a_folder_of_weights_comes_first(hub, model, tmp_path, monkeypatch):
    model.save_pretrained(tmp_path / "weights" / "idml_test_resnet_cub")
    model.save_pretrained(tmp_path / "weights" / "user" / "mirrored")
    monkeypatch.setenv("IDML_ZOO_WEIGHTS", str(tmp_path / "weights"))
    assert torch.equal(
        idml_zoo.create_model("idml_test_resnet_cub", pretrained=True)(IMAGES).semantic, model(IMAGES).semantic
    )
    assert pull("user/mirrored").origin.revision is None
    with pytest.raises(HubError, match="user/mirrored"):
        idml_zoo.create_model(f"hf-hub:user/mirrored@{'b' * 40}", pretrained=True)  # a folder has no revisions
    hub.requests.clear()
    from argparse import Namespace

    from idml_zoo.cli.arguments import open_model

    said = {"pretrained": None, "backbone_weights": "none", "backbone": None, "pooling": None, "revision": None}
    assert open_model(Namespace(model="idml_test_resnet_cub", **said)).origin, "the command line too"
    assert hub.requests == []
    (tmp_path / "weights" / "idml_test_resnet_glyphs").mkdir()
    folder = tmp_path / "weights" / "idml_test_resnet_glyphs"
    model.save_pretrained(folder)
    with pytest.raises(WeightsError, match=f"expected {PUBLISHED['idml_test_resnet_glyphs'].sha256[:12]}"):
        idml_zoo.create_model("idml_test_resnet_glyphs", pretrained=True)


def test_fetch_gives_path_and_commit(hub, published):
    got = fetch("user/birds", "config.json")
    assert (got.commit, json.loads(got.path.read_text())["format"]) == (published, 2)


# the command line


def test_settings_come_from_the_environment(hub, published, model, tmp_path):
    """A mirror, a cache, offline and a folder of weights, in processes that know nothing but their environment."""
    model.save_pretrained(tmp_path / "weights" / "user" / "local")
    code = "import sys, idml_zoo; m = idml_zoo.create_model(sys.argv[1], pretrained=True); print(m.origin.revision)"
    base = {k: v for k, v in os.environ.items() if not k.startswith("HF_")} | {"HF_HOME": str(tmp_path / "home")}
    base |= {"HF_ENDPOINT": hub.url, "HF_HUB_DISABLE_XET": "1", "IDML_ZOO_WEIGHTS": str(tmp_path / "weights")}

    def ask(name, **environment):
        command = [sys.executable, "-c", code, name]
        return subprocess.run(command, env=base | environment, cwd=ROOT, capture_output=True, text=True)

    assert ask("hf-hub:user/birds").stdout.strip() == published
    assert ask("hf-hub:user/birds", HF_HUB_OFFLINE="1").stdout.strip() == published
    assert ask("hf-hub:user/local").stdout.strip() == "None"
    assert "HF_HUB_OFFLINE is set" in ask("hf-hub:user/birds", HF_HUB_OFFLINE="1", HF_HOME=str(tmp_path / "b")).stderr


def test_the_server_itself_refuses_nonsense(hub):
    """So that the tests above mean something."""
    import urllib.error
    import urllib.request

    request = urllib.request.Request(f"{hub.url}/lfs/{'0' * 64}", data=io.BytesIO(b"x").read(), method="PUT")
    with pytest.raises(urllib.error.HTTPError, match="400"):
        urllib.request.urlopen(request)
