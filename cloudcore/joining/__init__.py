"""How nodes come to certificates: the CA, the join token, the HTTPS service they ask, and who is shut out again."""

from cloudcore.joining.admission import NodeAdmission, RevocationsFirst
from cloudcore.joining.credentials import CredentialFiles, Credentials
from cloudcore.joining.joining import Joining, JoiningSettings
from cloudcore.joining.revocations import Revocations
from cloudcore.joining.service import JoinService, JoinSettings
from cloudcore.joining.tokens import TokenKeeper

__all__ = [
    "CredentialFiles",
    "Credentials",
    "JoinService",
    "JoinSettings",
    "Joining",
    "JoiningSettings",
    "NodeAdmission",
    "Revocations",
    "RevocationsFirst",
    "TokenKeeper",
]
