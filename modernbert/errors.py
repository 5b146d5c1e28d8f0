"""The errors a user can meet. Each message is one line: the value, the limit, the remedy.

The command line prints the message and exits with status 2; nothing else is ever shown to a user as a
refusal. Programmer's mistakes stay `assert`, `TypeError` or `ValueError`.
"""


class ModernBertError(Exception):
    """Base of everything this package refuses."""

    said_elsewhere: bool = False  # another process of the same run tells the user


class ConfigError(ModernBertError):
    """A setting, recipe or combination of settings that cannot be run."""


class DataError(ModernBertError):
    """Text, shards or a tokenizer that cannot be used as they are."""


class CheckpointError(ModernBertError):
    """A checkpoint that is missing, incomplete or does not fit the model."""


class UnsupportedError(ModernBertError):
    """Something valid that this package does not do, so that it refuses instead of guessing."""


class TrainingError(ModernBertError):
    """A run that had to stop: the loss is no longer a number, or the run is in use by another process."""


class StoppedError(ModernBertError):
    """A run that was asked to stop and has saved: not done, and no fault of anybody's. Exit status 75, not 2."""
