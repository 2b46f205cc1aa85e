"""Identifiers: how they are written, and that they sort by time."""

from gateway.clock import Entropy, time_ordered_ids


def test_an_identifier_is_its_prefix_and_26_digits_of_crockfords_base_32() -> None:
    # 1 ms is bit 80, the lowest of the time's ten digits; entropy 0x21 is 1 * 32 + 1.
    new_id = time_ordered_ids(lambda: 0.001, lambda count: bytes(count - 1) + b"\x21")
    assert new_id("dec") == "dec_" + "0000000001" + "0000000000000011"


def test_the_largest_identifier_begins_with_7_and_is_full_of_z() -> None:
    new_id = time_ordered_ids(lambda: ((1 << 48) - 1) / 1000, lambda count: b"\xff" * count)
    assert new_id("hold") == "hold_7" + "z" * 25


def test_a_later_identifier_sorts_after_an_earlier_one_whatever_the_chance() -> None:
    moments = iter((0.031, 0.032))
    chance = iter((b"\xff" * 10, bytes(10)))
    new_id = time_ordered_ids(lambda: next(moments), lambda count: next(chance))
    earlier, later = new_id("dec"), new_id("dec")
    assert earlier < later


def test_bytes_are_fetched_together_and_given_out_once() -> None:
    asked: list[int] = []

    def source(count: int) -> bytes:
        asked.append(count)
        return bytes(range(count))

    entropy = Entropy(source, pool_bytes=8)
    assert (entropy.bytes(3), entropy.bytes(5)) == (b"\x00\x01\x02", b"\x03\x04\x05\x06\x07")
    assert entropy.bytes(2) == b"\x00\x01"
    assert entropy.bytes(9) == bytes(range(9))  # more than a pool holds
    assert asked == [8, 8, 9]


def test_a_draw_is_53_bits_below_one() -> None:
    """0x80 and zeros are half of all; ones everywhere the largest number below 1."""
    assert Entropy(lambda count: b"\x80" + bytes(count - 1), 7).uniform() == 0.5
    assert Entropy(lambda count: b"\xff" * count).uniform() == 1 - 2**-53
