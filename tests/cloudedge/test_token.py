"""The join token against the contract's worked example, and everything that is not one."""

import hmac
import time
from base64 import urlsafe_b64encode
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloudedge import certificates
from cloudedge.token import MAX_CHARS, BadToken, bearer_of, check_ca, expiry, mint_token, verify_bearer

CA, KEY = b"CA-DER", b"CA-KEY-DER"
EXAMPLE = (
    "f377f11ccf79ca0bffa402c090831d1ba67d3f0b4f3bcb4e1f1879188f100ba7.eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9."
    "eyJleHAiOjE3MDAwODY0MDB9.IzByLmzlxYXDsLKKzF9K4woRBsh7yC-jeC-bYEKSLvg"
)
END = 1_700_086_400.0
LONG = b"k" * 121

pytestmark = pytest.mark.filterwarnings("ignore:The HMAC key is")  # the example's is 10 bytes; a CA's is over 100


def signed(header: str, claims: str, *, digest: Literal["sha256", "sha512"] = "sha256") -> str:
    def part(data: bytes) -> str:
        return urlsafe_b64encode(data).rstrip(b"=").decode()

    text = f"{part(header.encode())}.{part(claims.encode())}"
    return f"{text}.{part(hmac.new(LONG, text.encode(), digest).digest())}"


def test_the_contracts_example() -> None:
    assert mint_token(CA, KEY, expires_at=END) == EXAMPLE
    assert expiry(EXAMPLE, CA, KEY, now=END - 1) == END
    with pytest.raises(BadToken, match="expired"):
        expiry(EXAMPLE, CA, KEY, now=END)


def test_a_token_of_a_real_ca() -> None:
    ca, key = certificates.der(certificates.create_ca())
    end = time.time() + 60
    token = mint_token(ca, key, expires_at=end)
    check_ca(token, ca)
    assert verify_bearer(bearer_of(token), key) == int(end)
    other, other_key = certificates.der(certificates.create_ca())
    with pytest.raises(BadToken, match="another cloud"):
        check_ca(token, other)
    with pytest.raises(BadToken, match="not signed"):
        verify_bearer(bearer_of(token), other_key)


def test_any_hmac_is_verified_as_upstream_does() -> None:
    assert verify_bearer(signed('{"alg":"HS512"}', '{"exp":4000000000}', digest="sha512"), LONG) == 4e9


@pytest.mark.parametrize(
    ("header", "claims"),
    (
        ('{"alg":"none"}', '{"exp":4000000000}'),
        ('{"alg":"RS256"}', '{"exp":4000000000}'),
        ('{"alg":"ES256"}', '{"exp":4000000000}'),
        ("{}", '{"exp":4000000000}'),
        ('{"alg":"HS256"}', "{}"),
        ('{"alg":"HS256"}', '{"exp":"soon"}'),
        ('{"alg":"HS256"}', '{"exp":true}'),
        ('{"alg":"HS256"}', '{"exp":null}'),
        ('{"alg":"HS256"}', '{"exp":NaN}'),
        ('{"alg":"HS256"}', "[]"),
        ('{"alg":"HS256"}', "[" * 1000),
    ),
)
def test_signed_with_the_key_and_still_no_token(header: str, claims: str) -> None:
    with pytest.raises(BadToken):
        verify_bearer(signed(header, claims), LONG)


@pytest.mark.parametrize("token", ("", ".", "a.b.c", "a.b.c.d.e", "a..c.d", "x" * 5000 + ".b.c.d"))
def test_what_does_not_have_four_parts(token: str) -> None:
    with pytest.raises(BadToken):
        bearer_of(token)


def test_a_bearer_that_is_too_long_is_not_looked_at() -> None:
    with pytest.raises(BadToken, match="too long"):
        verify_bearer("x" * (MAX_CHARS + 1), LONG)


@given(st.text(max_size=200) | st.from_regex(r"[A-Za-z0-9_-]*\.[A-Za-z0-9_-]*\.[A-Za-z0-9_-]*", fullmatch=True))
def test_anything_else_is_refused_and_nothing_more(text: str) -> None:
    with pytest.raises(BadToken):
        verify_bearer(text, LONG)
    with pytest.raises(BadToken):
        check_ca(text, CA)


@pytest.mark.parametrize("end", ("=", "==", "!", "~~~~", "\n", " ", "A"))
def test_a_token_is_written_in_one_way_only(end: str) -> None:
    bearer = bearer_of(mint_token(CA, LONG, expires_at=4_000_000_000))
    assert verify_bearer(bearer, LONG) == 4_000_000_000
    with pytest.raises(BadToken):  # or a revoked one, whose hash is on the list, would come back with another
        verify_bearer(bearer + end, LONG)
