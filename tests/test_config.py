"""Configs: YAML in, flags over it, defaults under it; mistakes end in one line that names file, key and fix."""

from __future__ import annotations

import re
import string
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from delineate.config import AugmentConfig, TrainConfig, build_config, dump_config, load_config, parse_override
from delineate.errors import ConfigError


def write(folder: Path, text: str) -> Path:
    path = folder / "config.yaml"
    path.write_text(text)
    return path


def test_defaults_lie_under_the_file_and_flags_over_it(tmp_path: Path) -> None:
    path = write(tmp_path, "data: {path: pictures}\nepochs: 7\nbatch: 3\noptimizer: {lr: 0.5}\n")
    config = load_config(path, {"batch": 9, "optimizer.momentum": 0.5})
    assert (config.epochs, config.batch, config.seed) == (7, 9, 0)
    assert (config.optimizer.lr, config.optimizer.momentum, config.optimizer.name) == (0.5, 0.5, "adamw")


def test_a_relative_path_is_taken_from_the_files_folder(tmp_path: Path) -> None:
    assert load_config(write(tmp_path, "data: {path: ../pictures}")).data.path == tmp_path / "../pictures"
    assert load_config(write(tmp_path, "data: pictures")).data.path == tmp_path / "pictures"
    assert load_config(write(tmp_path, "data: /pictures")).data.path == Path("/pictures")
    assert load_config(write(tmp_path, "data: pictures"), {"data.path": "other"}).data.path == Path("other")


def test_numbers_as_people_write_them(tmp_path: Path) -> None:
    """YAML 1.1 reads 1e-3 as text."""
    assert load_config(write(tmp_path, "data: x\noptimizer: {lr: 1e-3}")).optimizer.lr == 1e-3


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"epoch": 3}, r"unknown key 'epoch'; did you mean 'epochs'\?"),
        ({"augment": {"jiter": [0.1, 2]}}, r"unknown key 'augment.jiter'; did you mean 'jitter'\?"),
        ({"input": {"resize": {"shortst": 9}}}, r"unknown key 'input.resize.shortst'; did you mean 'shortest'\?"),
        ({"data": {"path": "x", "sampling": "repeat"}}, "'data.sampling' is 'repeat'.*'repeat_factor'"),
        ({"loss_weights": {"maks": 2}}, "loss_weights.maks.*'mask'"),
        ({"optimizer": {"learning_rate": 3}}, "unknown key 'optimizer.learning_rate'"),
        ({"optimizer": {"momentun": 3}}, r"'optimizer.momentun'; did you mean 'momentum'\?"),
        ({"loss": [{"name": "dice", "wieght": 2}]}, r"'loss.0.wieght'; did you mean 'weight'\?"),
        ({"epochs": 0}, "'epochs' is 0: .*greater than or equal to 1"),
        ({"optimizer": {"lr": "fast"}}, "'optimizer.lr' is 'fast'"),
        ({"precision": "fp8"}, "'precision' is 'fp8'.*'bf16'"),
        ({"loss": [{"name": "dise"}]}, "'loss.0.name' is 'dise'"),
        ({"data": None}, "'data' is None"),
        ({"seed": -1}, "'seed' is -1"),
        ({"augment": {"patch": 96}}, r"'augment\.patch' is 96: expected a list, such as \[96, 96\]$"),
        ({"loss": "dice"}, "'loss' is 'dice': expected a list$"),
    ],
)
def test_mistakes_are_named(content: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=f"my.yaml: .*{message}") as caught:
        build_config({"data": {"path": "x"}} | content, source="my.yaml")
    assert "\n" not in str(caught.value)


def test_all_mistakes_are_named_at_once() -> None:
    with pytest.raises(ConfigError, match=r"'epochs' is 0.*unknown key 'lr'"):
        build_config({"data": {"path": "x"}, "epochs": 0, "lr": 1})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1, 2]", "holds list, expected keys and values"),
        ("", "holds NoneType, expected keys and values"),
        ("epochs: [1", "is not YAML"),
        ("data: \x00", "is not YAML"),
    ],
)
def test_files_that_are_no_configs(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        load_config(write(tmp_path, text))
    assert "config.yaml" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere.yaml: cannot be read .*; give a YAML file"):
        load_config(tmp_path / "nowhere.yaml")


def test_an_override_of_what_is_a_value() -> None:
    with pytest.raises(ConfigError, match=r"'epochs\.more' cannot be set, because 'epochs' is the value 5"):
        build_config({"data": {"path": "x"}, "epochs": 5}, {"epochs.more": 1})


def test_parse_override() -> None:
    assert parse_override("epochs=3") == ("epochs", 3)
    assert parse_override("patience=null") == ("patience", None)
    assert parse_override("data.path=a=b") == ("data.path", "a=b")
    for wrong in ("epochs", "=3"):
        with pytest.raises(ConfigError, match="expected key=value"):
            parse_override(wrong)


def test_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        AugmentConfig().noise = 1.0  # pyright: ignore[reportAttributeAccessIssue]


TEXT = string.printable + "äΩ☃\N{PILE OF POO}"


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "epochs": st.integers(1, 10**6),
            "seed": st.integers(0, 2**63),
            "patience": st.none() | st.integers(1, 50),
            "deterministic": st.booleans(),
            "augment": st.fixed_dictionaries({"patch": st.tuples(st.integers(1, 999), st.integers(1, 999))}),
            "optimizer": st.fixed_dictionaries({"lr": st.floats(1e-12, 1e3), "ema": st.none() | st.floats(0.001, 0.999)}),
            "loss": st.lists(
                st.fixed_dictionaries(
                    {"name": st.sampled_from(["dice", "lovasz", "focal"]), "weight": st.floats(1e-3, 9.0)},
                    optional={"options": st.just({"gamma": 2.0})},
                ),
                min_size=1,
                max_size=3,
            ),
            "model": st.fixed_dictionaries(
                {"options": st.dictionaries(st.text("abc", min_size=1), st.integers() | st.text(TEXT, max_size=8))}
            ),
        },
    )
)
def test_dump_reads_back_equal(content: dict[str, Any]) -> None:
    config = build_config({"data": {"path": "/pictures"}} | content)
    again = TrainConfig.model_validate(yaml.safe_load(dump_config(config)))
    assert again == config


def test_the_configs_of_the_guide_are_configs() -> None:
    text = (Path(__file__).parents[1] / "docs" / "training.md").read_text()
    blocks = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    assert len(blocks) == 4
    for block in blocks:
        build_config(yaml.safe_load(block))
