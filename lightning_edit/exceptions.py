"""Errors of the library. Each inherits from the built-in one that users already catch."""


class LightningEditError(Exception):
    """Base of the errors that are the user's to mend; the command line prints no traceback."""


class DataError(LightningEditError, ValueError):
    """A data file or record is not of its form."""


class ArchitectureError(LightningEditError, ValueError):
    """A language model has no part that was looked for, or an editor cannot edit its kind."""


class StatisticsNotFoundError(LightningEditError, FileNotFoundError):
    """Key statistics of a layer have not been collected."""


class SolveError(LightningEditError, ArithmeticError):
    """A least-squares system is not positive definite or not finite."""


class NothingToTrainError(LightningEditError, TypeError):
    """``fit`` was called with an editor that has nothing to train."""


class NotBoundError(LightningEditError, RuntimeError):
    """An editor was used before it got a language model."""


class PassLayoutError(LightningEditError, RuntimeError):
    """A model cannot run any more as it did when the run began: hooks or attention were changed."""


class LedgerError(LightningEditError, RuntimeError):
    """The journal of edits and what was asked of it do not agree."""


class NotFiniteError(LedgerError):
    """An edit holds, or would make, a number that is not finite; the model is unchanged."""


class LedgerWriteError(LightningEditError, OSError):
    """A commit could not be written to disk; the model is unchanged."""


class ExportError(LightningEditError, ValueError):
    """An edit cannot be written in the format asked for."""


class SubjectNotFoundError(DataError):
    """An editor needs a subject and the request has none."""


class ModelLoadError(LightningEditError, OSError):
    """A language model or its tokenizer cannot be read from where it was said to be."""


class CheckpointError(LightningEditError, ValueError):
    """Stored parameters of a trained editor cannot be read, or are of another editor."""


class ConfigError(LightningEditError, ValueError):
    """An option of the command line, or a configuration file, cannot be used."""


class StatisticsWriteError(LightningEditError, OSError):
    """Statistics could not be written to disk; what was there before is unchanged."""


class ReportError(LightningEditError, RuntimeError):
    """A page or figure cannot be made: a package is missing, or the file cannot be written."""
