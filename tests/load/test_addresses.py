"""URLs with a user and a password, apart."""

import base64

import pytest

from benchlib.load.addresses import Address, address_of, addresses_of


@pytest.mark.parametrize(
    ("person", "sent"),
    [("lena:s3cret%21@", "lena:s3cret!"), ("lena@", "lena:"), ("l%3a:é@", "l::é")],
)
def test_a_user_and_a_password_leave_the_url(person, sent):
    url, authorization = address_of(f"https://{person}[::1]:8443/models")
    assert url == "https://[::1]:8443/models"
    assert base64.b64decode(authorization.removeprefix("Basic ")).decode() == sent


def test_each_url_has_its_address():
    assert addresses_of("http://a") == (Address("http://a", None),)
    assert [one.url for one in addresses_of(("http://a", "http://b"))] == ["http://a", "http://b"]
