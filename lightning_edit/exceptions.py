"""Exceptions of the library; each also inherits from the built-in one that users already catch."""


class LightningEditError(Exception):
    """Base class of errors that the user can fix; the command line prints no traceback."""


class DataError(LightningEditError, ValueError):
    """Data file or record in the wrong format."""


class ArchitectureError(LightningEditError, ValueError):
    """Unsupported model architecture: a module is missing, or the editor cannot edit this kind."""


class StatisticsNotFoundError(LightningEditError, FileNotFoundError):
    """Key statistics (second moments) of a layer have not been collected."""


class SolveError(LightningEditError, ArithmeticError):
    """Least-squares system that is not positive definite or not finite."""


class NothingToTrainError(LightningEditError, TypeError):
    """Training (``fit``) of an editor that has no trainable parameters."""


class NotBoundError(LightningEditError, RuntimeError):
    """Editor used before it was bound to a language model."""


class PassLayoutError(LightningEditError, RuntimeError):
    """Forward passes that can no longer run as at the start: hooks or attention have changed."""


class LedgerError(LightningEditError, RuntimeError):
    """Ledger, journal or checkpoint that does not match the requested operation."""


class RunLockedError(LedgerError):
    """Run folder that another process is writing; nothing was changed."""


class NotFiniteError(LedgerError, ValueError):
    """Edit or model with NaN or infinite values, or an edit that would cause them.

    The model is unchanged.
    """


class EditRefusedError(LedgerError):
    """Edit that misses a condition of its transaction; nothing was committed."""


class LedgerWriteError(LightningEditError, OSError):
    """Commit that could not be written to disk; the model is unchanged."""


class ExportError(LightningEditError, ValueError):
    """Edit that cannot be exported in the requested format."""


class ShippedEditsError(LightningEditError, ValueError):
    """Folder of exported edits that is damaged, or does not fit the model or this installation."""


class SubjectNotFoundError(DataError):
    """Request without the subject that the editor needs."""


class ModelLoadError(LightningEditError, OSError):
    """Language model or tokenizer that cannot be loaded from the given path or name."""


class CheckpointError(LightningEditError, ValueError):
    """Checkpoint of a trained editor that cannot be read, or belongs to another editor."""


class ConfigError(LightningEditError, ValueError):
    """Invalid command-line option or configuration file."""


class StatisticsWriteError(LightningEditError, OSError):
    """Key statistics that could not be written to disk; earlier files are unchanged."""


class ReportError(LightningEditError, RuntimeError):
    """Report page or figure that cannot be made: missing package, or file not writable."""


class RankLostError(LightningEditError, RuntimeError):
    """Process of a run that has ended or hangs, so that the others cannot go on."""


class RanksDifferError(LightningEditError, RuntimeError):
    """Processes of a run that have computed different edits; nothing of the edit was written."""
