"""Where a picture's pixels come from, as a file says it: the IPTC's digital source type in an XMP packet.

The terms are those of https://cv.iptc.org/newscodes/digitalsourcetype/, which C2PA manifests use as well.
"""

from enum import StrEnum
from xml.sax.saxutils import quoteattr

XMP_KEYWORD = "XML:com.adobe.xmp"  # of the PNG chunk (XMP Specification, part 3, §1.1.5)


class SourceType(StrEnum):
    """Digital source types of pictures that a model took part in."""

    GENERATED = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
    COMPOSITE = "http://cv.iptc.org/newscodes/digitalsourcetype/compositeWithTrainedAlgorithmicMedia"


def xmp_packet(source: SourceType, tool: str) -> str:
    """Return the packet of a picture that `tool` made; the same text for the same arguments."""
    return (
        '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>'
        '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
        '<rdf:Description rdf:about=""'
        ' xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/" xmlns:xmp="http://ns.adobe.com/xap/1.0/"'
        f" Iptc4xmpExt:DigitalSourceType={quoteattr(source)} xmp:CreatorTool={quoteattr(tool)}/>"
        '</rdf:RDF></x:xmpmeta><?xpacket end="r"?>'
    )
