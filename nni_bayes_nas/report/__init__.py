"""Tables, figures and one HTML file from run folders alone."""

from nni_bayes_nas.report.html import write_report
from nni_bayes_nas.report.picture import draw_architecture

__all__ = ["draw_architecture", "write_report"]
