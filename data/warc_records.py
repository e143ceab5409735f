"""Records of WET files, the text of web pages as Common Crawl has it, by `warcio`."""

from collections.abc import Iterator

from data.bad_records import Record, sized
from data.containers import Readable
from tokenizer_lab.errors import UserError

_TEXT = "conversion"  # the type of a record that is text made from a page
_PAGES = ("response", "resource", "revisit")


def read_wet(stream: Readable, path: object, max_bytes: int) -> Iterator[Record]:
    """Yields (number from 1, text of a page). Raises UserError where there are pages and no text of them."""
    try:
        from warcio.archiveiterator import ArchiveIterator
        from warcio.exceptions import ArchiveLoadFailed
    except ImportError as error:
        raise UserError(
            f"{path} is a WARC file, which needs a package that is not installed: pip install 'tokenizer-lab[warc]'"
        ) from error
    number = 0
    try:
        for record in ArchiveIterator(stream, no_record_parse=True):  # whose HTTP headers are not needed
            if record.rec_type in _PAGES:
                raise UserError(
                    f"{path} has web pages (a WARC record of type {record.rec_type}), not their text; take the WET"
                    " files of the same crawl, or make text of the pages first"
                )
            if record.rec_type != _TEXT:
                continue
            number += 1
            text = record.content_stream().read(max_bytes + 1)
            num_bytes = int(record.rec_headers.get_header("Content-Length"))
            if len(text) < min(num_bytes, max_bytes + 1):
                raise EOFError("it is cut off")
            yield number, sized(text, path, number, max_bytes)
    except (ArchiveLoadFailed, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(
            f"{path} cannot be read on as WARC after record {number}: {' '.join(str(error).split())[:200]}; get it"
            " again or leave it out"
        ) from error
