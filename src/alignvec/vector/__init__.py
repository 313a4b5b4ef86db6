"""The alignment vector: extract, arithmetic, store."""

from alignvec.vector.alignment_vector import AlignmentVector

__all__ = ["AlignmentVector"]
