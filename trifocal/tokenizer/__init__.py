"""A checkpoint's tokenizer: text to ids and back, whatever files it comes in."""

from trifocal.tokenizer.guard import Guard, valid_text
from trifocal.tokenizer.load import load_tokenizer
from trifocal.tokenizer.tokenizer import Tokenizer

__all__ = ["Guard", "Tokenizer", "load_tokenizer", "valid_text"]
