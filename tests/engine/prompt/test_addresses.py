"""Which addresses are public: the registries, block by block, whatever the interpreter's own tables say."""

import ipaddress
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

import pytest

from sgl_engine.prompt.addresses import (
    IPV4_SPECIAL,
    IPV6_GLOBAL,
    IPV6_SPECIAL,
    METADATA,
    TABLES_AS_OF,
    is_metadata,
    is_public,
)

# IANA's special-purpose registries and multicast, written down a second time.
REGISTRY_4 = """0.0.0.0/8 10.0.0.0/8 100.64.0.0/10 127.0.0.0/8 169.254.0.0/16 172.16.0.0/12 192.0.0.0/24
192.0.0.0/29 192.0.0.8/32 192.0.0.9/32 192.0.0.10/32 192.0.0.170/31 192.0.2.0/24 192.31.196.0/24
192.52.193.0/24 192.88.99.0/24 192.168.0.0/16 192.175.48.0/24 198.18.0.0/15 198.51.100.0/24
203.0.113.0/24 224.0.0.0/4 240.0.0.0/4 255.255.255.255/32""".split()
REGISTRY_6 = """::1/128 ::/128 64:ff9b:1::/48 100::/64 100:0:0:1::/64 2001::/23 2001::/32 2001:1::1/128
2001:1::2/128 2001:1::3/128 2001:2::/48 2001:3::/32 2001:4:112::/48 2001:10::/28 2001:20::/28
2001:30::/28 2001:db8::/32 2002::/16 2620:4f:8000::/48 3fff::/20 5f00::/16 fc00::/7 fe80::/10
fec0::/10 ff00::/8""".split()


@pytest.fixture(autouse=True)
def no_tables_of_the_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if every interpreter's own tables were wrong."""
    for kind in (IPv4Address, IPv6Address):
        for name in (
            "is_global",
            "is_private",
            "is_reserved",
            "is_multicast",
            "is_link_local",
            "is_loopback",
        ):
            monkeypatch.setattr(kind, name, property(lambda _, name=name: pytest.fail(f"{name} was asked")))


@pytest.mark.parametrize("block", REGISTRY_4 + REGISTRY_6)
def test_nothing_in_a_registered_block_is_public(block: str) -> None:
    network = ipaddress.ip_network(block)
    middle = network[network.num_addresses // 2]
    assert not any(is_public(str(address)) for address in (network[0], middle, network[-1]))


@pytest.mark.parametrize("block", REGISTRY_4)
def test_a_wrapped_address_is_judged_by_what_is_inside(block: str) -> None:
    inner = IPv4Network(block)[-1]
    assert not is_public(f"::ffff:{inner}")
    assert not is_public(f"64:ff9b::{inner}")


@pytest.mark.parametrize(
    "address",
    "1.1.1.1 8.8.8.8 9.255.255.255 11.0.0.0 100.63.255.255 100.128.0.0 126.255.255.255 128.0.0.0 "
    "169.253.255.255 169.255.0.0 172.15.255.255 172.32.0.0 191.255.255.255 192.0.1.0 192.0.3.0 192.88.98.255 "
    "192.88.100.0 192.167.255.255 192.169.0.0 198.17.255.255 198.20.0.0 223.255.255.255 168.63.129.15 "
    "2606:4700::1111 2a00:1450:4001::1 2001:200::1 2001:db7:ffff::1 2001:db9::1 2003::1 3ffe::1 3fff:1000::1 "
    "::ffff:8.8.8.8 64:ff9b::808:808".split(),
)
def test_the_control_neighbours_of_the_blocks_are_public(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize(
    "address", "::127.0.0.1 4000::1 1fff::1 ::ffff:0:7f00:1 fe80::1%eth0 2002:808:808::1 8000::1".split()
)
def test_what_nobody_assigned_is_not_public(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize(
    "address", "169.254.169.254 168.63.129.16 100.100.100.200 192.0.0.192 fd00:ec2::254 fd20:ce::254".split()
)
def test_metadata_services_are_known(address: str) -> None:
    assert is_metadata(address)
    assert not is_public(address)
    if "." in address:
        assert is_metadata(f"::ffff:{address}")
    assert not is_metadata("8.8.8.8")


def test_the_tables_are_dated_and_tidy() -> None:
    assert TABLES_AS_OF == "2024-10-22"
    assert all(isinstance(block, IPv4Network) for block in IPV4_SPECIAL)
    assert all(isinstance(block, IPv6Network) and block.subnet_of(IPV6_GLOBAL) for block in IPV6_SPECIAL)
    assert ip_address("169.254.169.254") in METADATA
