"""The dashboard's cookie: signed, bound to a key and a role, and short-lived."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.accounts.auth import Caller
from gateway.config.values import Secret
from gateway.ui.sign_in import SIGNED_IN_S, SignIn

MASTER = Secret("sk-q8W2rT5yU7iO0pA3sD6fG9hJ")


def caller(role: str) -> Caller:
    return Caller(tenant_id="ten_1", key_id="key_1", role=role, has_budget=False, key_models=None)


def test_a_cookie_names_its_key_and_an_admin_sees_every_tenant() -> None:
    subject = SignIn(MASTER, lambda: 100.0)
    admin = subject.viewer(subject.cookie_for(caller("admin")))
    reader = subject.viewer(subject.cookie_for(caller("read-only")))
    assert admin is not None
    assert reader is not None
    assert (admin.key_id, admin.tenant_id, admin.may_change) == ("key_1", None, True)
    assert (reader.tenant_id, reader.may_change) == ("ten_1", False)
    assert admin.csrf != reader.csrf


@pytest.mark.parametrize("role", ["tenant", "service"])
def test_keys_that_spend_do_not_open_the_dashboard(role: str) -> None:
    assert SignIn(MASTER, lambda: 100.0).cookie_for(caller(role)) is None


def test_a_cookie_ends_with_its_time_and_with_the_master_key() -> None:
    cookie = SignIn(MASTER, lambda: 100.0).cookie_for(caller("admin"))
    assert SignIn(MASTER, lambda: 100.0 + SIGNED_IN_S - 1).viewer(cookie) is not None
    assert SignIn(MASTER, lambda: 100.0 + SIGNED_IN_S).viewer(cookie) is None
    assert SignIn(Secret("sk-z1X4cV7bN0mQ3wE6rT9yU2iO"), lambda: 100.0).viewer(cookie) is None


def test_the_key_is_not_in_the_cookie() -> None:
    cookie = SignIn(MASTER, lambda: 100.0).cookie_for(caller("admin"))
    assert cookie is not None
    assert MASTER.reveal() not in cookie


@given(position=st.integers(0, 200), letter=st.sampled_from("ABCxyz019-_.="))
def test_an_altered_cookie_is_nobody(position: int, letter: str) -> None:
    subject = SignIn(MASTER, lambda: 100.0)
    cookie = subject.cookie_for(caller("read-only"))
    assert cookie is not None
    at = position % len(cookie)
    altered = cookie[:at] + letter + cookie[at + 1 :]
    viewer = subject.viewer(altered)
    assert viewer is None or viewer == subject.viewer(cookie)  # the last letter of base64 has bits that do not count


@given(st.text(max_size=200))
def test_text_of_any_kind_is_nobody(text: str) -> None:
    assert SignIn(MASTER, lambda: 100.0).viewer(text) is None
