"""What does an XMP packet say that upscaling makes untrue, and what of it is about whose picture it is?

A packet is changed as text, in place of being parsed and written again: whatever else is in it stays as it is.
"""

from __future__ import annotations

import re
from xml.etree import ElementTree

MOST_BYTES = 4 << 20
"""Of a packet: others have some kilobytes, or some hundred with a thumbnail."""
NAMES = {
    "x": "adobe:ns:meta/",
    "rdf": "http://www.w3.org/1999/02/22-rdf-syntax-ns#",
    "dc": "http://purl.org/dc/elements/1.1/",
    "xmpRights": "http://ns.adobe.com/xap/1.0/rights/",
}
DESCRIPTION = f"{{{NAMES['rdf']}}}Description"
OWNERS = (f"{{{NAMES['dc']}}}creator", f"{{{NAMES['dc']}}}rights", f"{{{NAMES['xmpRights']}}}")
"""How the names of properties begin that tell of an owner."""


class DamagedXmp(Exception):
    """It is no XML that can be read."""


def upright_xmp(xmp: bytes) -> bytes:
    """The packet, saying that the picture is upright.

    Raises:
        DamagedXmp: it is not UTF-8, or larger than any that is meant.
    """
    packet = xmp.rstrip(b"\0")
    try:
        packet.decode()
    except UnicodeDecodeError as exc:
        raise DamagedXmp from exc
    if len(packet) > MOST_BYTES:
        raise DamagedXmp
    return _set(packet, b"tiff:Orientation", 1)


def sized_xmp(xmp: bytes, width: int, height: int) -> bytes:
    """The packet, told the size where it speaks of one."""
    for name in (b"tiff:ImageWidth", b"exif:PixelXDimension"):
        xmp = _set(xmp, name, width)
    for name in (b"tiff:ImageLength", b"exif:PixelYDimension"):
        xmp = _set(xmp, name, height)
    return xmp


def copyright_xmp(xmp: bytes) -> bytes | None:
    """A packet of its own with creator and rights; None if it names none or cannot be read."""
    if b"<!" in xmp:  # entities, which may blow up
        return None
    try:
        root = ElementTree.fromstring(xmp.decode())  # noqa: S314 - without entities
    except (ElementTree.ParseError, ValueError):
        return None
    for prefix, name in NAMES.items():
        ElementTree.register_namespace(prefix, name)
    kept = ElementTree.Element(DESCRIPTION, {f"{{{NAMES['rdf']}}}about": ""})
    for description in root.iter(DESCRIPTION):
        kept.attrib.update({name: value for name, value in description.items() if name.startswith(OWNERS)})
        kept.extend(child for child in description if child.tag.startswith(OWNERS))
    if len(kept) == 0 and len(kept.attrib) == 1:
        return None
    packet = ElementTree.Element(f"{{{NAMES['x']}}}xmpmeta")
    ElementTree.SubElement(packet, f"{{{NAMES['rdf']}}}RDF").append(kept)
    return ElementTree.tostring(packet)


def _set(xmp: bytes, name: bytes, value: int) -> bytes:
    """Change a number, be it an attribute or an element, if it is there."""
    pattern = rb"(\b" + name + rb"\s*(?:=\s*[\"']|>)\s*)\d+"
    return re.sub(pattern, lambda found: found[1] + str(value).encode(), xmp)
