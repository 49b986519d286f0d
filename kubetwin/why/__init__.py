"""`kubetwin why NS/NAME`: walks the path of a device's values from both ends and names the first broken step.

`collect` gathers evidence, `walk` judges it, `render` shows the verdict. This module is what others may use of it, and
loads nothing that talks to anybody.
"""

from kubetwin.why.steps import ALL_FINE, NOTHING_ASKED, Detail, Step, StepNumber, Verdict

__all__ = ["ALL_FINE", "NOTHING_ASKED", "Detail", "Step", "StepNumber", "Verdict"]
