"""No configuration file, and no environment, does worse than to be refused."""

from pathlib import Path

import pytest

from tests.fuzz.configs import FUZZERS
from tests.fuzz.fuzzers import Fuzzer
from tierstore.config_loading import Setting, load_config
from tierstore.errors import ConfigError

EXAMPLES = 40


@pytest.mark.parametrize("fuzzer", FUZZERS, ids=repr)
def test_configs(fuzzer: Fuzzer) -> None:
    """Whatever is in it, it is a configuration that can be written and read again, or refused with a reason."""
    assert fuzzer.run(EXAMPLES, seed=0) > 0


@pytest.mark.parametrize("path", ["a\u2028http: {port: 1}", "a\u2029b", "a\ufffeb", "a\ufeffb", "a\xa0b", "größe"])
def test_paths_that_yaml_breaks_at(path: str, tmp_path: Path) -> None:
    """A rendered configuration is read as the same one, whatever is in the paths that its comments show."""
    loaded = load_config(None, {}, {"data.path": Setting(path, "flag --data")})
    file = tmp_path / "rendered.yaml"
    file.write_text(loaded.render(), encoding="utf-8")
    assert load_config(file, {}, {}).config == loaded.config


@pytest.mark.parametrize("path", ["\x00", "\x1b[2J", "\x7f", "a\x85b", "\x9f"])
def test_no_control_characters(path: str) -> None:
    """No setting holds a control character, of either set: some end a line in YAML, some are a terminal's orders."""
    with pytest.raises(ConfigError, match="without control characters"):
        load_config(None, {"TIERSTORE__DATA__PATH": path}, {})


@pytest.mark.parametrize("value", ["!!int ''", "!!float ''", "!!timestamp x", "!!bool x", "!!int 0x", "!!float x"])
def test_values_that_their_tags_do_not_fit(value: str, tmp_path: Path) -> None:
    """What the YAML library trips over is a problem of the file, told to the operator."""
    file = tmp_path / "tierstore.yaml"
    file.write_text(f"http: {{port: {value}}}\n")
    with pytest.raises(ConfigError, match=str(file)):
        load_config(file, {}, {})
