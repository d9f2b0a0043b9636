"""Which addresses webhooks may be sent to. A name that the operator allows may still lead into the operator's network,
by mistake or because somebody else answers for it; so what counts is the address."""

from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address

_NAT64 = IPv6Network("64:ff9b::/96")  # RFC 6052: the last 32 bits are an IPv4 address that is reached through it


def is_public(address: str) -> bool:
    """Whether an address is one of the public Internet: not private, loopback, link-local, multicast or reserved."""
    parsed = ip_address(address.partition("%")[0])
    if parsed in _NAT64:
        parsed = IPv4Address(int(parsed) & 0xFFFF_FFFF)
    return _is_public(parsed) and all(_is_public(inner) for inner in _within(parsed))


def _is_public(address: IPv4Address | IPv6Address) -> bool:
    return address.is_global and not address.is_multicast and not address.is_reserved


def _within(address: IPv4Address | IPv6Address) -> list[IPv4Address]:
    """Return the IPv4 addresses that an IPv6 address is another way to."""
    if isinstance(address, IPv4Address):
        return []
    return [one for one in (address.ipv4_mapped, address.sixtofour, *(address.teredo or ())) if one is not None]
