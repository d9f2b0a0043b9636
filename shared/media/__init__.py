"""Pictures in and out: untrusted files become plain sRGB arrays, arrays become files that say how they were
made.

Only PNG, JPEG and WebP are taken, recognized by their content. All limits are checked on the header, by a
reader of our own, before a decoder sees a byte; the decoder's own words never reach a client.
"""

from shared.media.decoding import decode_image
from shared.media.encoding import encode_image, read_text
from shared.media.headers import Header, ImageLimits, read_header
from shared.media.inline import inline_bytes

__all__ = ["Header", "ImageLimits", "decode_image", "encode_image", "inline_bytes", "read_header", "read_text"]
