"""Which network addresses are public: tables of our own. Pure.

``ipaddress`` has tables too, but which ones depends on the interpreter: Python 3.11.7 takes 192.0.0.192,
192.88.99.1 and 3fff::1 for public addresses, and no version knows the metadata services of clouds. Only its
parsing is used.
"""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

TABLES_AS_OF = "2024-10-22"
"""Last change of the IANA registries that the tables below were checked against."""

IPV4_SPECIAL = tuple(
    map(
        IPv4Network,
        (
            "0.0.0.0/8",  # this network
            "10.0.0.0/8",  # private
            "100.64.0.0/10",  # shared behind a provider's translation
            "127.0.0.0/8",  # loopback
            "169.254.0.0/16",  # link-local, metadata of most clouds
            "172.16.0.0/12",  # private
            "192.0.0.0/24",  # protocol assignments, metadata of Oracle's cloud
            "192.0.2.0/24",  # documentation
            "192.31.196.0/24",  # AS112: answers name queries only
            "192.52.193.0/24",  # multicast tunnels
            "192.88.99.0/24",  # 6to4 relays, withdrawn
            "192.168.0.0/16",  # private
            "192.175.48.0/24",  # AS112
            "198.18.0.0/15",  # benchmarks
            "198.51.100.0/24",  # documentation
            "203.0.113.0/24",  # documentation
            "224.0.0.0/4",  # multicast
            "240.0.0.0/4",  # reserved, and limited broadcast
        ),
    )
)
"""Blocks that no public server has, though some are globally reachable: no picture lies in any."""

IPV6_GLOBAL = IPv6Network("2000::/3")
"""The only block from which public addresses are assigned; what is outside is special or reserved."""

IPV6_SPECIAL = tuple(
    map(
        IPv6Network,
        (
            "2001::/23",  # protocol assignments: Teredo, benchmarks, ORCHID, anycast of protocols
            "2001:db8::/32",  # documentation
            "2002::/16",  # 6to4: an IPv4 address within, by way of withdrawn relays
            "2620:4f:8000::/48",  # AS112
            "3fff::/20",  # documentation
        ),
    )
)
"""Blocks inside ``IPV6_GLOBAL`` that no public server has."""

METADATA = frozenset(
    map(
        ip_address,
        (
            "169.254.169.254",  # AWS, Azure, Google, OpenStack, DigitalOcean, ...
            "169.254.170.2",  # AWS, of containers
            "169.254.170.23",  # AWS, of pods
            "169.254.0.23",  # Tencent
            "168.63.129.16",  # Azure's host: a public address of the registries
            "100.100.100.200",  # Alibaba
            "192.0.0.192",  # Oracle
            "fd00:ec2::254",  # AWS
            "fd00:ec2::23",  # AWS, of pods
            "fd20:ce::254",  # Google
        ),
    )
)
"""Where clouds give credentials to whoever asks from inside: never fetched, whatever else is allowed."""

_MAPPED, _NAT64 = IPv6Network("::ffff:0:0/96"), IPv6Network("64:ff9b::/96")


def is_public(address: str) -> bool:
    """Whether an address, as the resolver writes it, is that of a public server."""
    ip = _without_wrapping(address)
    if ip in METADATA:
        return False
    if isinstance(ip, IPv4Address):
        return not any(ip in block for block in IPV4_SPECIAL)
    return ip in IPV6_GLOBAL and not any(ip in block for block in IPV6_SPECIAL)


def is_metadata(address: str) -> bool:
    """Whether an address is that of a cloud's metadata service."""
    return _without_wrapping(address) in METADATA


def _without_wrapping(address: str) -> IPv4Address | IPv6Address:
    """The IPv4 address that an IPv6 one stands for, by mapping or by translation; else the address."""
    ip = ip_address(address.partition("%")[0])  # without the zone
    if isinstance(ip, IPv6Address) and (ip in _MAPPED or ip in _NAT64):
        return IPv4Address(int(ip) & 0xFFFFFFFF)
    return ip
