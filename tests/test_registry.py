import pytest

from idml_zoo.registry import Registry, UnknownNameError, benchmarks, heads, losses, match


def test_unknown_names_give_the_nearest():
    with pytest.raises(UnknownNameError, match=r"unknown head 'idmll'; did you mean 'idml'"):
        heads["idmll"]
    with pytest.raises(UnknownNameError, match="unknown loss.*proxy_anchor"):
        losses["proxyanchor"]
    with pytest.raises(UnknownNameError, match="unknown benchmark 'cub200'.*'cub2010'"):
        benchmarks["cub200"]


def test_a_name_is_registered_once():
    registry: Registry[int] = Registry("thing")
    registry.add("a", 1)
    with pytest.raises(ValueError, match="registered already"):
        registry.add("a", 2)
    assert list(registry) == ["a"] and "a" in registry and len(registry) == 1


def test_exclude_takes_a_string_or_a_list():
    names = ["vit_small", "vit_base", "resnet50"]
    assert match(names, exclude="vit*") == ["resnet50"]
    assert match(names, exclude=["vit_b*", "resnet*"]) == ["vit_small"]
    assert match(names, "vit*") == ["vit_base", "vit_small"]


def test_the_built_in_names():
    assert {"idml", "semantic", "features"} <= set(heads)
    assert {"cub", "cars196", "sop", "glyphs", "cub2010", "cars196_half", "omniglot"} <= set(benchmarks)
