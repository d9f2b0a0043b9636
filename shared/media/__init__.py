"""Pictures in and out: untrusted files become plain sRGB arrays, arrays become files that say how they were
made.

Only PNG, JPEG and WebP are taken, recognized by their content. All limits are checked on the header, by a
reader of our own, before a decoder sees a byte; the decoder's own words never reach a client.
"""

from shared.media.decoding import decode_image, decode_opacity
from shared.media.encoding import encode_image, read_text
from shared.media.headers import Header, ImageLimits, read_header
from shared.media.inline import inline_bytes, inline_text
from shared.media.masks import PAINTED, PAINTED_FROM, check_canvas, check_mask, extended, mask_of
from shared.media.provenance import SourceType, xmp_packet
from shared.media.thumbnails import encode_thumbnail

__all__ = [
    "PAINTED",
    "PAINTED_FROM",
    "Header",
    "ImageLimits",
    "SourceType",
    "check_canvas",
    "check_mask",
    "decode_image",
    "decode_opacity",
    "encode_image",
    "encode_thumbnail",
    "extended",
    "inline_bytes",
    "inline_text",
    "mask_of",
    "read_header",
    "read_text",
    "xmp_packet",
]
