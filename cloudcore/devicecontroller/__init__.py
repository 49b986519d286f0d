"""The device controller: devices and models down to their nodes, twins and states up into `DeviceStatus`."""

from cloudcore.devicecontroller.controller import ControllerSettings, DeviceController
from cloudcore.devicecontroller.links import NodeLink

__all__ = ["ControllerSettings", "DeviceController", "NodeLink"]
