"""What can go wrong for a user, as one line that says what, where and what to do."""


class LensError(Exception):
    """Bad input. The command line prints the message alone and exits with code 2."""


class ModelError(LensError):
    """The model cannot be found, loaded, mapped, or is not the one a file was made for."""


class SiteError(LensError):
    """The site is misspelt, the architecture lacks it, or it failed a proof."""


class TaskError(LensError):
    """The pairs are malformed, or too few, or do not fit the tokenizer or the site."""


class SubspaceError(LensError):
    """The subspace has the wrong shape, is damaged, or belongs to another model or site."""


class ResultError(LensError):
    """Results cannot be written, or what is read back is not what was written."""


class EditError(LensError):
    """A weight edit cannot be computed, or is not for this model."""


def first_line(error: BaseException) -> str:
    """The first line of what an exception says, behind the exception's name where the message alone
    says little (`KeyError: 'model'`)."""
    line = next((line for line in str(error).splitlines() if line.strip()), "").strip()
    kind = type(error).__name__
    tells = isinstance(error, LensError | OSError | ValueError | RuntimeError)
    if not line:
        return kind
    return line if tells else f"{kind}: {line}"
