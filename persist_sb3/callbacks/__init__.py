"""SB3 callbacks that train the models behind the layers, and measure."""

from persist_sb3._doors import refuse_root_import
from persist_sb3.callbacks.base import PersistCallback, bind_all
from persist_sb3.callbacks.behaviour_cloning import BehaviourCloningCallback
from persist_sb3.callbacks.belief import BeliefCallback
from persist_sb3.callbacks.best_of import BestOfCallback
from persist_sb3.callbacks.calibration import CalibrationCallback
from persist_sb3.callbacks.curriculum import CurriculumCallback
from persist_sb3.callbacks.empowerment import EmpowermentCallback
from persist_sb3.callbacks.gradient_steps import GradientStepsCallback
from persist_sb3.callbacks.internal_model import InternalModelCallback
from persist_sb3.callbacks.lagrange import LagrangeCallback
from persist_sb3.callbacks.latent import LatentWorldModelCallback
from persist_sb3.callbacks.metrics import MetricsCallback
from persist_sb3.callbacks.rnd import RNDCallback
from persist_sb3.callbacks.safety_network import SafetyNetworkCallback
from persist_sb3.callbacks.setpoint import SetpointCallback
from persist_sb3.callbacks.tensorboard import TensorBoardCallback
from persist_sb3.callbacks.viability import ViabilityCallback
from persist_sb3.callbacks.wandb import TrackCallback
from persist_sb3.callbacks.world_model import WorldModelCallback

__all__ = [
    "BehaviourCloningCallback",
    "BeliefCallback",
    "BestOfCallback",
    "CalibrationCallback",
    "CurriculumCallback",
    "EmpowermentCallback",
    "GradientStepsCallback",
    "InternalModelCallback",
    "LagrangeCallback",
    "LatentWorldModelCallback",
    "MetricsCallback",
    "PersistCallback",
    "RNDCallback",
    "SafetyNetworkCallback",
    "SetpointCallback",
    "TensorBoardCallback",
    "TrackCallback",
    "ViabilityCallback",
    "WorldModelCallback",
    "bind_all",
]

refuse_root_import(__name__)
