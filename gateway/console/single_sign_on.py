"""Sign-in at an OpenID Connect provider: the code flow with PKCE, and the role from a claim of the provider's token."""

from __future__ import annotations

import base64
import hashlib
import logging
import secrets
import time
from collections.abc import Mapping
from typing import Any

import httpx2
import msgspec
from authlib.integrations.base_client.errors import OAuthError
from authlib.integrations.httpx_client import AsyncOAuth2Client
from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import KeySet
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from gateway.callers import PUBLIC_LENGTH
from gateway.configuration.sections import OidcSettings
from gateway.console.sessions import Person, match_tokens
from gateway.console.sign_in import open_session, render_sign_in
from gateway.console.signed_in_request import Console, validate_path
from gateway.server.listener import CONSOLE

log = logging.getLogger(__name__)
FLOW_COOKIE = "apprentice_console_flow"
FLOW_SECONDS = 600
USED = "apprentice:console:flow:"
FLOW_BYTES_MAX = 3_800
"""Browsers drop a cookie of more than 4,096 bytes, name and all."""
DOCUMENT_SECONDS = 300.0
PROVIDER_SECONDS_MAX = 10.0
ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "ES256", "ES384", "EdDSA")
"""Signatures with a key pair alone: a secret that both sides know proves nothing about the provider."""
OTHER_SHAPE = (KeyError, TypeError, AttributeError)
"""The errors of reading a JSON of another shape, such as a list in the place of an object."""


class NotIdentified(Exception):
    """The provider did not identify a person who may sign in; the message gives the reason."""


class Flow(msgspec.Struct, frozen=True, kw_only=True):
    """A sign-in that is under way, valid until `ends_at` (Unix seconds). Anyone may begin one, so the gateway does not
    store it: the browser has it in a signed cookie."""

    ends_at: float
    state: str
    nonce: str
    verifier: str
    to: str


async def send_to_provider(console: Console, request: Request) -> Response:
    """Send the browser to the provider."""
    settings, secret = _settings_of(console), console.services.digest_secret
    flow = Flow(
        ends_at=time.time() + FLOW_SECONDS,
        state=secrets.token_urlsafe(32),
        nonce=secrets.token_urlsafe(32),
        verifier=secrets.token_urlsafe(48),
        to=validate_path(request.query_params.get("to", "")),
    )
    if len(sign_flow(secret, flow)) > FLOW_BYTES_MAX:
        flow = msgspec.structs.replace(flow, to=validate_path(""))
    try:
        async with _client(console, settings) as client:
            document = await _read_document(console, client, settings)
            url, _ = client.create_authorization_url(
                document["authorization_endpoint"], state=flow.state, nonce=flow.nonce, code_verifier=flow.verifier
            )
    except (httpx2.HTTPError, ValueError, *OTHER_SHAPE) as error:
        return _tell_fault(console, request, flow.to, 502, "The provider can't be reached. Sign in with a key.", error)
    response = RedirectResponse(url, 303)
    # the redirect back comes from the provider's site
    console.keep(response, FLOW_COOKIE, sign_flow(secret, flow), FLOW_SECONDS, "lax")
    return response


async def take_back(console: Console, request: Request) -> Response:
    """Sign in the person whom the provider sends back."""
    settings, services = _settings_of(console), console.services
    flow = read_flow(services.digest_secret, request.cookies.get(FLOW_COOKIE, ""))
    if flow is None or not match_tokens(request.query_params.get("state"), flow.state):
        text = "This sign-in took too long, or was begun elsewhere. Try again."
        return render_sign_in(console, request, "", 403, text)
    try:
        if not await services.redis.set(_name(flow.state), 1, ex=FLOW_SECONDS, nx=True):  # it asks the provider once
            raise NotIdentified("This sign-in was used already. Try again.")
        async with _client(console, settings) as client:
            claims = await _identify(console, client, settings, flow, request.query_params)
        person = make_person(settings, claims, services.digest_secret)
        caller = person.caller(settings)
        assert caller is not None, "who has no role is not identified"
    except NotIdentified as refused:
        return render_sign_in(console, request, flow.to, 403, str(refused))
    except (httpx2.HTTPError, OAuthError, JoseError, ValueError, *OTHER_SHAPE) as error:
        text = "The provider did not sign you in. Try again; the reason is in the gateway's log."
        return _tell_fault(console, request, flow.to, 403, text, error)
    response = await open_session(console, caller, flow.to, person)
    console.keep(response, FLOW_COOKIE, "", None)
    return response


def sign_flow(secret: bytes, flow: Flow) -> str:
    """A sign-in as a cookie that can't be made without the secret."""
    content = base64.urlsafe_b64encode(msgspec.json.encode(flow)).decode().rstrip("=")  # a cookie would quote "="
    return f"{content}.{_signature_of(secret, content)}"


def read_flow(secret: bytes, cookie: str) -> Flow | None:
    """The sign-in in a cookie; None if its signature is wrong, or the sign-in took too long."""
    content, _, signature = cookie.partition(".")
    if not match_tokens(signature, _signature_of(secret, content)):
        return None
    flow = msgspec.json.decode(base64.urlsafe_b64decode(content + "=="), type=Flow)
    return flow if time.time() < flow.ends_at else None


def _signature_of(secret: bytes, content: str) -> str:
    return hashlib.blake2b(content.encode(), key=secret, digest_size=32, person=b"console_flow").hexdigest()


def make_person(settings: OidcSettings, claims: Mapping[str, Any], secret: bytes) -> Person:
    """The person in these claims. The public part follows from the person's identity, and does not reveal it.

    Raises NotIdentified for a person without a role.
    """
    owner = claims.get(settings.owner_claim)
    is_doubtful = settings.owner_claim == "email" and claims.get("email_verified") not in (True, "true")
    if not isinstance(owner, str) or not owner or is_doubtful:
        raise NotIdentified(f"The provider gives no {settings.owner_claim} of you that counts.")
    claim: Any = claims
    for part in settings.role_claim.split("."):
        claim = claim.get(part) if isinstance(claim, Mapping) else None
    values = {str(each) for each in (claim if isinstance(claim, list) else [claim]) if each is not None}
    with_role = tuple(sorted(values & {*settings.admins, *settings.operators, *settings.reviewers}))
    if not with_role:
        raise NotIdentified("Your account has no role here. Ask who keeps the provider's groups.")
    subject = f"{settings.issuer}\n{claims['sub']}".encode()
    digest = hashlib.blake2b(subject, key=secret, digest_size=16, person=b"console").digest()
    public = base64.b32encode(digest).decode().lower()[:PUBLIC_LENGTH]
    name = claims.get("name")
    shown = name if isinstance(name, str) and name else owner
    return Person(public=public, name=shown, owner=owner, values=with_role)


async def _identify(
    console: Console, client: AsyncOAuth2Client, settings: OidcSettings, flow: Flow, answer: Mapping[str, str]
) -> Mapping[str, Any]:
    """The claims of the token for this answer's code, after checks of signature, issuer, audience, time and nonce."""
    if "error" in answer:
        raise OAuthError(answer["error"], answer.get("error_description"))
    document = await _read_document(console, client, settings)
    tokens = await client.fetch_token(document["token_endpoint"], code=answer["code"], code_verifier=flow.verifier)
    published = await client.request("GET", document["jwks_uri"], withhold_token=True)
    keys = KeySet.import_key_set(published.raise_for_status().json())
    token = jwt.decode(tokens["id_token"], keys, algorithms=[*ALGORITHMS])
    needed: dict[str, Any] = {
        "iss": {"essential": True, "value": settings.issuer},
        "aud": {"essential": True, "value": settings.client_id},
        "nonce": {"essential": True, "value": flow.nonce},
        "exp": {"essential": True},
        "sub": {"essential": True},
    }
    jwt.JWTClaimsRegistry(now=lambda: int(time.time()), leeway=60, **needed).validate(token.claims)
    if token.claims.get("azp", settings.client_id) != settings.client_id:
        raise ValueError("the token is for another client")
    if "userinfo_endpoint" not in document:
        return token.claims
    more = (await client.get(document["userinfo_endpoint"])).raise_for_status().json()
    if more["sub"] != token.claims["sub"]:
        raise ValueError("the provider answers for another person")
    return {**more, **token.claims}


def _client(console: Console, settings: OidcSettings) -> AsyncOAuth2Client:
    secret = settings.client_secret
    return AsyncOAuth2Client(
        client_id=settings.client_id,
        client_secret=secret.get_secret_value() if secret else None,
        scope=settings.scope,
        redirect_uri=f"{console.public_url}{CONSOLE}/sign-in/back",
        code_challenge_method="S256",
        token_endpoint_auth_method="client_secret_basic" if secret else "none",
        trust_env=False,
        timeout=PROVIDER_SECONDS_MAX,
    )


async def _read_document(console: Console, client: AsyncOAuth2Client, settings: OidcSettings) -> dict[str, Any]:
    """The provider's own description, cached for DOCUMENT_SECONDS. Raises ValueError if it names another issuer."""
    cached, now = console.provider, time.monotonic()
    if cached is not None and now < cached[0]:
        return cached[1]
    answer = await client.request(
        "GET", f"{settings.issuer.rstrip('/')}/.well-known/openid-configuration", withhold_token=True
    )
    document: dict[str, Any] = answer.raise_for_status().json()
    if document["issuer"] != settings.issuer:
        raise ValueError("the issuer is another one")
    console.provider = now + DOCUMENT_SECONDS, document
    return document


def _tell_fault(console: Console, request: Request, to: str, status: int, text: str, error: Exception) -> Response:
    """The sign-in page. Only the log has the reason, since that may quote the provider."""
    log.warning("a sign-in at the provider failed: %.500r", f"{type(error).__name__}: {error}")
    return render_sign_in(console, request, to, status, text)


def _settings_of(console: Console) -> OidcSettings:
    settings = console.services.settings.console.oidc
    assert settings is not None, "its addresses are there with these settings only"
    return settings


def _name(state: str) -> str:
    return USED + hashlib.sha256(state.encode()).hexdigest()
