"""What does a picture's file hold, and how is it written again? Bytes <-> arrays, with all else that the file carries.

| written | pixels                           | colour profile | EXIF        | dpi           |
|---------|----------------------------------|----------------|-------------|---------------|
| JPEG    | gray, RGB                        | yes            | up to 64 KB | whole numbers |
| PNG     | gray, RGB, + alpha; 8 or 16 bits | yes            | yes         | yes           |
| WebP    | RGB, RGBA; gray becomes RGB      | unless gray's  | yes         | in EXIF only  |
| TIFF    | gray, RGB, + alpha; 8 or 16 bits | yes            | yes         | yes           |
| BMP     | gray, RGB, RGBA; LA becomes RGBA | no             | no          | yes           |
| AVIF    | gray, RGB, RGBA; LA becomes RGBA | yes            | yes         | in EXIF only  |

GIF and HEIC are read and become PNG; CMYK becomes sRGB. AVIF and HEIC of 10 and 12 bits are read with 16.
XMP is carried as EXIF is.
IPTC, comments, and PNG's gAMA and text chunks are not carried over.
"""

from worker.formats import output_format
from worker.images.decoding import decode
from worker.images.encoding import encode
from worker.images.fitting import MAX_SIDE, check_output, fitted, left_out, without_opaque_alpha
from worker.images.picture import Extras, Header, Picture

__all__ = [
    "MAX_SIDE",
    "Extras",
    "Header",
    "Picture",
    "check_output",
    "decode",
    "encode",
    "fitted",
    "left_out",
    "output_format",
    "without_opaque_alpha",
]
