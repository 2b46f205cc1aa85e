"""The master key of a gateway that was given none."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from gateway.config.master_key import weakness_of_master_key, with_stored_master_key
from gateway.config.reader import SettingsError
from gateway.config.settings import GeneralSettings, Settings
from gateway.config.values import Secret


def settings_at(folder: Path) -> Settings:
    return Settings(models=(), general=GeneralSettings(None, Secret(f"sqlite:///{folder / 'money.db'}")))


def key_of(settings: Settings) -> str:
    assert settings.general.master_key is not None
    return settings.general.master_key.reveal()


def test_the_first_start_makes_a_strong_key_that_only_its_owner_may_read(tmp_path: Path) -> None:
    made = with_stored_master_key(settings_at(tmp_path))
    file = tmp_path / "money.master-key"
    assert (made.made, made.file) == (True, file)
    assert file.stat().st_mode & 0o777 == 0o600
    assert weakness_of_master_key(key_of(made.settings)) is None
    assert [path.name for path in tmp_path.iterdir()] == ["money.master-key"]


def test_later_starts_find_the_same_key(tmp_path: Path) -> None:
    first = with_stored_master_key(settings_at(tmp_path))
    second = with_stored_master_key(settings_at(tmp_path))
    assert (first.made, second.made) == (True, False)
    assert key_of(first.settings) == key_of(second.settings)


def test_processes_that_start_at_once_agree_on_one_key(tmp_path: Path) -> None:
    with ThreadPoolExecutor(16) as pool:
        started = list(pool.map(lambda _: with_stored_master_key(settings_at(tmp_path)), range(64)))
    assert len({key_of(one.settings) for one in started}) == 1
    assert sum(one.made for one in started) == 1


def test_a_configured_key_is_left_alone(tmp_path: Path) -> None:
    configured = replace(settings_at(tmp_path), general=GeneralSettings(Secret("sk-configured"), Secret("sqlite:///x")))
    assert with_stored_master_key(configured).settings is configured


def test_postgres_wants_a_configured_key() -> None:
    settings = Settings(models=(), general=GeneralSettings(None, Secret("postgresql://h/d")))
    with pytest.raises(SettingsError, match="replicas on Postgres share it"):
        with_stored_master_key(settings)


def test_a_key_that_others_may_read_is_refused(tmp_path: Path) -> None:
    with_stored_master_key(settings_at(tmp_path))
    (tmp_path / "money.master-key").chmod(0o644)
    with pytest.raises(SettingsError, match="expected mode 0600"):
        with_stored_master_key(settings_at(tmp_path))


def test_a_stored_key_that_is_weak_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "money.master-key"
    file.write_text("sk-1234\n")
    file.chmod(0o600)
    with pytest.raises(SettingsError, match="well-known"):
        with_stored_master_key(settings_at(tmp_path))
