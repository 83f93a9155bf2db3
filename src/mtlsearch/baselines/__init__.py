"""What a search is compared with: networks that are trained without one."""

from mtlsearch.baselines.single_task import SingleTask

__all__ = ["SingleTask"]
