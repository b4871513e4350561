"""Run records: what a run leaves behind, written as it goes and read without torch. Must not know the engine."""

from vit24h.records.environment import capture_environment
from vit24h.records.folder import FollowedRunFolder, RunFolder
from vit24h.records.reader import Run, find_runs, load_run

__all__ = ["FollowedRunFolder", "Run", "RunFolder", "capture_environment", "find_runs", "load_run"]
