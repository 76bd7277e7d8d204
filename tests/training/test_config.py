import inspect
import json

import pytest
import yaml
from conftest import ROOT

from idml_zoo.losses import proxy_anchor
from idml_zoo.registry import benchmarks
from idml_zoo.training.config import GROUP_OF, Config, ConfigError, load_config
from idml_zoo.training.recipes import QUICKSTART
from idml_zoo.variants import variants

RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.name)
def test_every_recipe_loads_and_names_things_that_exist(path):
    import timm

    config = load_config(path)
    assert config.benchmark in benchmarks
    assert config.variant in variants
    assert timm.is_model(config.network.backbone.split(".")[0])
    assert path.read_text().startswith("#"), "a recipe says what it reaches, in how long, on what"


def test_the_authors_settings_are_in_their_recipes():
    expected = {"cub": (6e-4, 5, 0.5), "cars196": (2.5e-4, 10, 0.5), "sop": (6e-4, 10, 0.25)}
    for name, (lr, step, gamma) in expected.items():
        config = load_config(f"{name}_resnet50")
        c = config.optimizer
        assert (c.lr, c.lr_step, c.lr_gamma) == (lr, step, gamma)
        assert (config.data.batch_size, c.epochs, c.warmup_epochs, c.weight_decay) == (120, 60, 5, 1e-4)
        assert (c.proxy_lr_multiplier, c.clip_value) == (100, 10)
        assert (config.network.embedding_dim, config.loss.loss_options) == (512, {})
    settings = inspect.signature(proxy_anchor).parameters
    assert (settings["scale"].default, settings["margin"].default) == (32, 0.1)


def test_overrides_are_typed():
    config = load_config(
        QUICKSTART, ["lr=6e-4", "epochs=3", "flip=true", "pooling=avg", "image_size=96", "random_crop_scale=[0.1, 1]"]
    )
    assert (config.optimizer.lr, config.optimizer.epochs, config.network.pooling) == (6e-4, 3, "avg")
    assert (config.data.flip, config.data.image_size, config.data.random_crop_scale) == (True, 96, [0.1, 1.0])
    assert load_config(QUICKSTART, ["train_classes=12"]).data.train_classes == "12"
    texts = load_config(QUICKSTART, ["revision=0123456", "name=0012", "train_classes=1:30"])
    assert (texts.data.revision, texts.name, texts.data.train_classes) == ("0123456", "0012", "1:30"), "as they stand"
    assert load_config(QUICKSTART, ["resume=no", "mixed_precision=no"]).resume == "no"
    assert load_config(QUICKSTART, ["image_size=null"]).data.image_size is None


def test_a_row_is_named_after_its_variant():
    """Else a control would be saved as the row that it controls."""
    assert load_config(QUICKSTART, ["variant=pa_mixup"]).row(64) == "pa_mixup-test_resnet-quickstart"
    assert load_config(QUICKSTART, ["name={variant}-{image_size}"]).row(64) == "idml-64"
    hub = load_config(QUICKSTART, ["name={backbone}", "backbone=hf-hub:timm/resnet18.tv_in1k"])
    assert hub.row(64) == "resnet18", "a name of a folder"
    assert load_config(QUICKSTART, ["name=mine", "evaluate_on=validation"]).row(64) == "mine-validation"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("epoch=3", "command line: unknown key 'epoch'; did you mean 'epochs'"),
        ("learning_rat=3", "unknown key 'learning_rat'"),
        ("epochs=3.5", "epochs must be int, got 3.5"),
        ("epochs=many", "epochs must be int, got 'many'"),
        ("lr=fast", "lr must be float, got 'fast'"),
        ("lr=true", "lr must be float, got True"),
        ("flip=1", "flip must be bool or null, got 1"),
        ("freeze_batchnorm=yes please", "freeze_batchnorm must be bool"),
        ("epochs=0", "epochs must be positive"),
        ("lr=-1", "lr must be positive"),
        ("warmup_epochs=99", r"warmup_epochs must lie in 0–20"),
        ("mixed_precision=bf61", "mixed_precision must be one of no, bf16, fp16"),
        ("backbone_weights=imagenet", "backbone_weights must be one of none, timm, package"),
        ("val_classes=2", "between 0 and 1"),
        ("sampler=pq", "sampler must be one of shuffle, pk"),
        ("accumulate=7", "accumulate must divide batch_size 120, got 7"),
        ("ema_decay=1.5", r"ema_decay must lie in \[0, 1\)"),
        ("profile_steps=-1", "profile_steps must be 0 or more"),
        ("checkpoint_every=-1", "checkpoint_every must be 0 or a number of steps"),
        ("cache_features=true", "cache_features needs freeze_backbone=true"),
        ("corruptions=fog", "corruptions takes blur, noise"),
        ("similarity=introspective", "similarity must be one of cosine, both"),
        ("validate_every=21", "validate_every=21 never comes in 20 epochs"),
        ("select=best", "patience and select=best need validate_every=1"),
        ("patience=3", "patience and select=best need validate_every=1"),
        ("tracker=comet", "tracker must be one of"),
        ("images_per_class=0", "images_per_class must be positive"),
        ("stream=shards/*.tar", "say how long an epoch is with steps_per_epoch=1000"),
        ("epochs", "expected key=value, got 'epochs'"),
        ("lr=[1", "the value is not YAML"),
        ("random_crop_scale=[a, b]", "random_crop_scale must be list or null"),
        ("name={epochs}-x", "may hold {variant}, {backbone} and {image_size}, got '{epochs}-x'"),
        ("name={", "name must be letters"),
        ("backbone_options=[]", "backbone_options must be dict"),
    ],
)
def test_bad_overrides_are_one_clear_error(override, message):
    with pytest.raises(ConfigError, match=message):
        load_config(QUICKSTART, [override])


def test_what_does_not_go_together_is_said():
    with pytest.raises(ConfigError, match="shard goes without ema_decay"):
        load_config(QUICKSTART, ["shard=true", "ema_decay=0.9"])


def test_bad_files_are_one_clear_error(tmp_path):
    with pytest.raises(ConfigError, match="recipes at hand: .*, cars196_resnet50.yaml"):
        load_config(tmp_path / "nothing.yaml")
    (tmp_path / "list.yaml").write_text("- a")
    with pytest.raises(ConfigError, match="must hold key: value lines, got list"):
        load_config(tmp_path / "list.yaml")
    (tmp_path / "typo.yaml").write_text("bachsize: 3")
    with pytest.raises(ConfigError, match="typo.yaml: unknown key 'bachsize'; did you mean 'batch_size'"):
        load_config(tmp_path / "typo.yaml")


def test_the_resolved_configuration_reads_back_the_same(tmp_path):
    config = load_config(QUICKSTART, ["seed=4"])
    (tmp_path / "config.yaml").write_text(config.to_yaml())
    assert load_config(tmp_path / "config.yaml") == config
    assert set(yaml.safe_load(config.to_yaml())) == GROUP_OF.keys()


def test_a_variant_brings_the_batches_its_loss_needs_unless_one_says_otherwise(tmp_path):
    assert load_config(QUICKSTART).data.sampler == "shuffle"
    config = load_config(QUICKSTART, ["variant=idml_triplet"])
    assert (config.data.sampler, config.data.images_per_class) == ("pk", 4)
    assert load_config(QUICKSTART, ["variant=idml_triplet", "sampler=shuffle"]).data.sampler == "shuffle"
    (tmp_path / "a.yaml").write_text("variant: margin\nimages_per_class: 2\n")
    assert load_config(tmp_path / "a.yaml").data.images_per_class == 2
    assert load_config(QUICKSTART, ["loss_options={margin: 0.2}"]).loss.loss_options == {"margin": 0.2}


RESULTS = ROOT / "leaderboard" / "results"


def test_the_recipes_of_stored_results_give_the_same_text_again(tmp_path):
    """Byte for byte: a result file is the record of its run. Older recipes lack keys and are not compared."""
    recipes = {json.loads(p.read_text())["provenance"].get("recipe") for p in sorted(RESULTS.glob("*/*/seed*.json"))}
    complete = [r for r in recipes if r and yaml.safe_load(r).keys() == GROUP_OF.keys()]
    assert len(complete) > 100
    for recipe in complete:
        assert Config.from_flat(yaml.safe_load(recipe)).to_yaml() == recipe
    (tmp_path / "recipe.yaml").write_text(complete[0])
    assert load_config(tmp_path / "recipe.yaml").to_yaml() == complete[0]


def test_a_key_is_in_one_group_and_changes_there():
    config = load_config(QUICKSTART)
    assert config.flat()["lr"] == config.optimizer.lr == 2e-3
    other = config.replace(lr=1.0, seed=3)
    assert (other.optimizer.lr, other.seed, config.optimizer.lr) == (1.0, 3, 2e-3)
    assert other.replace(lr=2e-3, seed=0) == config
    with pytest.raises(ConfigError, match="unknown key 'lrr'"):
        config.replace(lrr=1.0)
    with pytest.raises(ConfigError, match="lr must be positive"):
        config.replace(lr=0.0)


@pytest.mark.parametrize(
    ("words", "warmup", "notes"),
    [
        (["epochs=1"], 0, 1),
        (["epochs=7"], 3, 1),
        (["epochs=10"], 5, 0),
        (["epochs=7", "warmup_epochs=5"], 5, 0),
        (["lr=1e-3"], 5, 0),
    ],
)
def test_a_warm_up_that_nobody_chose_takes_half_of_the_epochs_at_most(words, warmup, notes):
    said = []
    assert load_config("cub_resnet50", words, said.append).optimizer.warmup_epochs == warmup
    assert len(said) == notes
    if notes:
        assert said == [f"warmup_epochs is {warmup} instead of 5: half of {words[0]}"]


def test_a_warm_up_that_was_chosen_stays(tmp_path):
    """A recipe with both keys trains as it did; on the command line one that does not fit is a mistake."""
    (tmp_path / "both.yaml").write_text("epochs: 7\nwarmup_epochs: 5\n")
    said = []
    assert load_config(tmp_path / "both.yaml", [], said.append).optimizer.warmup_epochs == 5 and said == []
    assert load_config(tmp_path / "both.yaml", ["epochs=8"], said.append).optimizer.warmup_epochs == 4
    (tmp_path / "one.yaml").write_text("epochs: 7\n")
    assert load_config(tmp_path / "one.yaml").optimizer.warmup_epochs == 3
    with pytest.raises(ConfigError, match="warmup_epochs must lie in 0–1"):
        load_config("cub_resnet50", ["epochs=1", "warmup_epochs=2"])


def test_a_recipe_has_a_short_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert (
        load_config("cub_resnet50")
        == load_config("cub_resnet50.yaml")
        == load_config(ROOT / "recipes/cub_resnet50.yaml")
    )
    (tmp_path / "cub_resnet50").write_text("seed: 3\n")
    assert load_config("cub_resnet50").seed == 3, "a file goes first"
