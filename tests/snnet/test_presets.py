"""Presets that are damaged, hostile or in another encoding."""

from __future__ import annotations

from pathlib import Path

import pytest

from snnet.config.commands import TrainCommand
from snnet.config.resolve import load_yaml
from snnet.errors import UserError


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("epochss: 3", ": unknown key 'epochss'; did you mean 'epochs'?"),
        ("batch-size: 3", ": unknown key 'batch-size'; did you mean 'batch_size'?"),
        ("epochs: 3.5", ": epochs: must be a whole number >= 1 and < 1000000000, got '3.5'"),
        ("epochs: 0", ": epochs: must be a whole number >= 1 and < 1000000000, got '0'"),
        ("lr: .nan", ": lr: must be a number > 0 and <= 1e15, got 'nan'"),
        ("epochs: true", ": epochs: must be a whole number >= 1 and < 1000000000, got 'True'"),
        ("amp: 1", ": amp: must be true or false, got '1'"),
        ("data_dir: 7", ": data_dir: must be the name of a file or folder, or none, got '7'"),
        ("lr: [1]", ": lr: must be a number > 0 and <= 1e15, got '[1]'"),
        ("- epochs", " must hold lines 'flag_name: value', got a list"),
        ("epochs: [", " is not YAML: "),
        ("epochs: 2024-13-01", ": epochs: must be a whole number >= 1 and < 1000000000, got '2024-13-01'"),
        ("lr: !!int ''", " is not YAML: a value is not of its type (string index out of range)"),
        (
            "epochs: " + "7" * 5000,
            " is not YAML: a value is not of its type (Exceeds the limit (4300 digits) ",
        ),
        (
            "epochs: " + "7" * 300,
            ": epochs: must be a whole number >= 1 and < 1000000000, got 'a whole number of 997",
        ),
        (
            "lr: 0x" + "f" * 3000,
            ": lr: must be a number > 0 and <= 1e15, got 'a whole number of 12,000 bits'",
        ),
        ("arch: 0x" + "f" * 5000, ": arch: must be one of resnet18, resnet34, "),
        ("epochs: " + "[" * 3000, " is not YAML: more than 4 levels are not read"),
        ("lr: &a [1]\nepochs: *a", " is not YAML: an alias (*a) is not read"),
        (
            "lr: !!timestamp 2024-01-01",
            " is not YAML: a value of the kind tag:yaml.org,2002:timestamp is not",
        ),
        ("lr: !!python/object:os.system x", " is not YAML: a value of the kind tag:yaml.org,2002:python/"),
        ("amp: !!bool maybe", " is not YAML: a value is not of its type ('maybe')"),
        ("lr: 0.1\nepochs: 2\nlr: 0.2", " is not YAML: the key 'lr' is there twice"),
        ("a" * 70000 + ": 1", " has more than 65,536 bytes"),
        ("x" * 500 + ": 1", f": unknown key '{'x' * 100}…'"),
        (
            "image_cache: [[" + "1, " * 99 + "2]]",
            ": image_cache: must be one of auto, on, off, got '[[1, 1, 1, 1, …]]'",
        ),
        ("? [1, 2]\n: 3", " is not YAML: "),
        ("lr: a\0b", " is no text: it has zero bytes"),
    ],
)
def test_bad_presets_name_the_file_and_the_key(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "preset.yaml"
    path.write_text(text + "\n")
    with pytest.raises(UserError) as caught:
        TrainCommand.parse(["--config", str(path)])
    assert str(caught.value).startswith(f"{path}{message}") and "\n" not in str(caught.value)


def test_aliases_are_refused_before_they_are_followed(tmp_path: Path) -> None:
    levels = [f"k{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9 if i else ['1'] * 9)}]" for i in range(9)]
    (tmp_path / "bomb.yaml").write_text("\n".join(levels))
    with pytest.raises(UserError, match=r"bomb.yaml is not YAML: an alias \(\*a0\) is not read in"):
        load_yaml(tmp_path / "bomb.yaml")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_presets_of_every_unicode_encoding_and_line_end(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "a.yaml").write_bytes("dataset: folder\r\ndata_dir: 2024-01-31/ä\r\n".encode(encoding))
    assert load_yaml(tmp_path / "a.yaml") == {"dataset": "folder", "data_dir": "2024-01-31/ä"}


def test_a_preset_that_is_no_unicode_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_bytes("data_dir: ä".encode("latin-1"))
    with pytest.raises(UserError, match=r"a.yaml is no UTF-8 text \(byte 10\)$"):
        load_yaml(tmp_path / "a.yaml")
