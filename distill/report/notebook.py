"""How a notebook shows the results of a study."""

from dataclasses import fields

from distill.report.html import results_html
from distill.storage.study_results import StudyResults


class NotebookResults(StudyResults):
    """The results of a study, which a notebook shows as summary and table of arms.

    They are what they would be otherwise; only their display in a notebook is added here, because
    the storage of results knows nothing of reports.
    """

    @classmethod
    def of(cls, results: StudyResults) -> "NotebookResults":
        """Return the same results with a display."""
        return cls(**{item.name: getattr(results, item.name) for item in fields(results)})

    def __eq__(self, other: object) -> bool:
        return isinstance(other, StudyResults) and self.to_dict() == other.to_dict()

    __hash__ = StudyResults.__hash__

    def _repr_html_(self) -> str:
        return results_html(self)
