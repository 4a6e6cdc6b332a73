from .codes.codes import Codes as Codes
from .dim_reduce import DimReduce as DimReduce
from .enums import Precision as Precision
from .errors import UserError as UserError
from .evaluation.compare import Comparison as Comparison
from .evaluation.compare import compare as compare
from .fitting.pairs import Pairs as Pairs
from .fitting.size import Size as Size
from .fitting.summary import Summary as Summary
from .head import Head as Head
from .portable.check import check as check
from .portable.export import export as export
from .portable.publish import publish as publish
from .portable.save import save_portable as save_portable
from .progress import disable_progress_bars as disable_progress_bars
from .progress import enable_progress_bars as enable_progress_bars
from .recipe import reduce_model as reduce_model
from .record import FitRecord as FitRecord
from .vectors.index import Index as Index

__version__: str
