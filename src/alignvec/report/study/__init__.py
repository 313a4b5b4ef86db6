"""The report of a study: from its folder to a page, Markdown, CSV and JSON."""

from alignvec.report.study.write import summary, write_report

__all__ = ["summary", "write_report"]
