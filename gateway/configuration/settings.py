"""All settings of the gateway with their bounds. A unit is last in a name. Only this file reads the environment.

Values come from apprentice.yaml and from `APPRENTICE_…` variables, which have priority. `__` separates levels
(`APPRENTICE_LIMITS__RETRIES_MAX=1`). With an unknown key, the gateway does not start and names the key.
docs/reference/settings.md lists them all.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import quote, urlencode, urlsplit

import yaml
from pydantic import AfterValidator, Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict
from pydantic_settings import SettingsError as UnreadableVariable

from gateway.callers import split_key
from gateway.configuration.faults import (
    ConfigurationSource,
    ContradictingSettings,
    describe_errors,
    find_placeholders,
)
from gateway.configuration.monitor import MonitorSettings
from gateway.configuration.pools import PoolSettings, TlsSettings, faults_of
from gateway.configuration.sections import (
    AuditSettings,
    Bytes,
    ConsoleSettings,
    DatasetSettings,
    DoorLimits,
    EvaluationSettings,
    FittingSettings,
    FolderOrBucket,
    FolderPath,
    ListenSettings,
    Name,
    PullSettings,
    QueueLimits,
    RedisGone,
    ReleaseSettings,
    Seconds,
    Section,
    ShareAboveZero,
    StoredBytes,
    TracingSettings,
    has_section,
    refuse_switch,
)
from gateway.configuration.tasks import TaskSettings
from gateway.configuration.texts import TextSettings
from gateway.configuration.training import TrainingSettings
from gateway.errors import SettingsError, SettingsFault
from monitoring.bucket_storage import Bucket
from monitoring.metric_values import Metric
from monitoring.quality.verdicts.monitor_plan import MonitorPlan
from router.policy import AttemptLimits, CacheIsolation
from serving.adapters.plain_yaml import describe_syntax, read_yaml
from serving.adapters.signature import SignatureError, read_public_key
from serving.fleet import PoolConfig

PROCESSES_MAX = 64
ENVIRONMENT_PREFIX = "APPRENTICE_"
PREFIX_SIMILARITY_MIN = 0.8
COMMAND_LINE_VARIABLES = frozenset({"APPRENTICE_URL", "APPRENTICE_KEY"})
"""Variables that only commands read (docs/reference/cli.md). They are not settings, and not reported as faults."""


class LimitSettings(DoorLimits, QueueLimits):
    """Bounds of one request, and the number of its tries."""

    request_timeout_seconds: Seconds = Field(120.0, description="Whole request, attempts and waits included.")
    answer_timeout_seconds: Seconds = Field(60.0, description="Longest silence of an unstreamed answer.")
    first_token_timeout_seconds: Seconds = Field(10.0, description="Wait for the first token of an attempt, streamed.")
    inter_token_timeout_seconds: Seconds = Field(20.0, description="Longest time without a token in a stream.")
    connect_timeout_seconds: Seconds = Field(2.0, description="Connection to an engine.")
    retries_max: int = Field(2, ge=0, le=10, description="Attempts in one pool after the first.")
    backoff_seconds: Seconds = Field(0.2, description="First wait before the same replica again; then doubled.")
    retry_after_seconds_max: Seconds = Field(5.0, description="Longest Retry-After that is observed.")
    body_bytes_max: Bytes = Field(4 << 20, description="Longest body of a request.")
    feedback_body_bytes_max: Bytes = Field(1 << 20, description="Longest body of `POST /v1/feedback`.")
    feedback_bytes_per_day: StoredBytes = Field(32 << 20, description="Bytes of feedback for each key in a UTC day.")
    answer_bytes_max: Bytes = Field(32 << 20, description="Longest answer of an engine.")
    event_bytes_max: Bytes | None = Field(None, description="Longest event of a stream; unset: answer_bytes_max.")
    in_flight_max: int = Field(4096, ge=1, le=1_000_000, description="Requests in progress in this gateway.")
    drain_seconds_max: Seconds = Field(60.0, description="Longest wait of a stopping gateway for its requests.")
    adapter_bytes_max: int = Field(2 << 30, ge=1024, le=2 << 30, description="Largest uploaded adapter.")
    uploads_max: int = Field(2, ge=1, le=100, description="Uploads at the same time.")
    pool_max_tokens_max: int = Field(
        4096, ge=1, le=1_000_000, description="Most completion tokens where a pool is named as `model`."
    )
    redis_gone: RedisGone = Field(
        "open", description="Keys' limits without Redis, after their quotas: open lets all through."
    )
    quota_share: ShareAboveZero = Field(0.02, description="Share of a key's limit that one gateway leases at once.")
    lease_timeout_seconds: float = Field(0.5, gt=0, le=60, description="Longest wait for such a quota.")
    general_share_window_seconds: Seconds = Field(600.0, description="Window of general_share_max.")

    def attempts(self) -> AttemptLimits:
        """The limits in the form that the router uses."""
        event_bytes_max = self.event_bytes_max or self.answer_bytes_max
        return AttemptLimits(**self.pick(AttemptLimits.__dataclass_fields__) | {"event_bytes_max": event_bytes_max})


class RecordSettings(Section):
    """Records and feedback: how long and how many."""

    retention_seconds: int = Field(
        7 * 86_400, ge=60, le=366 * 86_400, description="Time in which a request can be read and judged."
    )
    stream_records_max: int = Field(1_000_000, ge=1000, description="Records in the stream in Redis.")
    stream_reported_max: int = Field(250_000, ge=1000, description="Reported records in a stream of their own.")
    unarchived_records_max: int = Field(
        250_000, ge=0, description="Further records in each stream until they are archived."
    )
    request_feedback_bytes_max: int = Field(
        1 << 20, ge=1 << 17, le=1 << 30, description="Bytes of all feedback on one request."
    )
    pending_max: int = Field(50_000, ge=100, description="Records in memory where the spool takes none.")
    recent_bytes_max: int = Field(
        8 << 20, ge=0, le=1 << 30, description="Latest bodies in memory, to try rules on; 0: none."
    )
    flush_interval_seconds: Seconds = Field(0.02, description="Longest wait of a record in memory.")
    spool_after_seconds: Seconds = Field(0.2, description="Wait for Redis before records are spooled.")
    spool_bytes_max: StoredBytes = Field(1 << 30, description="Largest spool; beyond it the oldest are dropped.")
    spool_sync_interval_seconds: Seconds = Field(1.0, description="Time between syncs of the spool.")
    archive: bool = Field(True, description="Whether records and feedback become Parquet files.")
    archive_folder: FolderOrBucket | None = Field(
        None, description="Their folder, or s3://BUCKET/FOLDER or gs://…; unset: `records` in the data folder."
    )
    archive_interval_seconds: Seconds = Field(300.0, description="Time between writes of the archive.")
    archive_retention_days: int = Field(366, ge=1, le=36_600, description="Days in the archive.")


class RedisSettings(Section):
    """The wait of an acknowledgement, where a Redis is configured, and how long its file keeps what was deleted."""

    replicas_acked_min: int = Field(0, ge=0, le=16, description="Replicas that must have a write on disk.")
    acked_timeout_seconds: float = Field(5.0, gt=0, le=9, description="Longest wait for a write on disk.")
    rewrite_interval_seconds: float = Field(
        300.0, ge=0, le=86_400, description="Time between rewrites of the append-only file; 0: none."
    )


class FeedbackMetricSettings(Section):
    """A declared kind of judgement."""

    kind: Literal["boolean", "float", "category"] = Field(description="Kind of its values.")
    better: Literal["higher", "lower"] = Field("higher", description="The good direction; true is 1.")
    minimum: float | None = Field(None, description="Least value of a float.")
    maximum: float | None = Field(None, description="Greatest value of a float.")
    categories: tuple[str, ...] = Field((), description="Values of a category.")

    def metric(self) -> Metric:
        """As far as it matters to how bad a value is."""
        return Metric(kind=self.kind, better=self.better, minimum=self.minimum, maximum=self.maximum)


def _see_that_it_is_a_key(text: str) -> str:
    try:
        read_public_key(text)
    except SignatureError as error:
        raise ValueError(str(error)) from None
    return text


class SigningSettings(Section):
    """Whose signatures on adapters count."""

    required: bool = Field(False, description="Whether adapters need a trusted signature.")
    trusted: dict[Name, Annotated[str, AfterValidator(_see_that_it_is_a_key)]] = Field(
        default_factory=dict, description="Signers and their ed25519 public keys in base64."
    )


class Settings(BaseSettings):
    """The whole configuration."""

    model_config = SettingsConfigDict(
        env_prefix=ENVIRONMENT_PREFIX,
        env_nested_delimiter="__",
        extra="forbid",
        frozen=True,
        nested_model_default_partial_update=True,
    )
    _refuse_switch = field_validator("*", mode="before")(classmethod(refuse_switch))

    listen: ListenSettings = ListenSettings()
    data_folder: FolderPath = Field(Path("var/data"), description="Folder for what must survive a restart.")
    store_folder: FolderPath | None = Field(None, description="Adapter store; unset: `store` in the data folder.")
    import_folders: tuple[Path, ...] = Field((), description="Folders whose adapters and prompts may be imported.")
    pulls: PullSettings = PullSettings()
    redis_url: SecretStr | None = Field(None, description="Redis, Valkey, Sentinels or Cluster; unset: embedded.")
    redis_password_file: Path | None = Field(None, description="File with Redis's password, read at each connection.")
    redis_sentinel_password_file: Path | None = Field(None, description="File with the Sentinels' password.")
    redis_tls: TlsSettings | None = Field(
        None, description="Certificates for a rediss:// redis_url; unset: the system's."
    )
    redis: RedisSettings = RedisSettings()
    admin_key: SecretStr | None = Field(
        None, description="An admin key that always works; unset: the first start writes one."
    )
    pools: dict[Name, PoolSettings] = Field(min_length=1, description="Pools by name.")
    general_pool: Name = Field("general", description="Pool whose price is the reference for savings.")
    tasks: dict[Name, TaskSettings] = Field(default_factory=dict, description="Tasks by name.")
    limits: LimitSettings = LimitSettings()
    records: RecordSettings = RecordSettings()
    texts: TextSettings = TextSettings()
    feedback_metrics: dict[Name, FeedbackMetricSettings] = Field(
        default_factory=lambda: {"correct": FeedbackMetricSettings(kind="boolean")},
        description="Declared feedback metrics by name.",
    )
    fitting: FittingSettings = FittingSettings()
    datasets: DatasetSettings = DatasetSettings()
    training: TrainingSettings = TrainingSettings()
    evaluation: EvaluationSettings = EvaluationSettings()
    monitor: MonitorSettings = MonitorSettings()
    signing: SigningSettings = SigningSettings()
    release: ReleaseSettings = ReleaseSettings()
    audit: AuditSettings = AuditSettings()
    tracing: TracingSettings = TracingSettings()
    console: ConsoleSettings = ConsoleSettings()
    processes: Annotated[int, Field(ge=1, le=PROCESSES_MAX)] | Literal["auto"] = Field(
        1, description="Its processes; auto: one for each core."
    )
    series_max: int = Field(32_000, ge=2000, description="Prometheus series of this gateway.")
    cache_isolation: CacheIsolation = Field(
        "caller", description="Prefix caches of engines: one for each caller, or shared (none)."
    )
    health_interval_seconds: Seconds = Field(1.0, description="Time between health checks of a replica.")
    snapshot_interval_seconds: Seconds = Field(1.0, description="Longest time until an admin's change is active.")
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field("INFO", description="Least severity in the log.")
    log_format: Literal["json", "text"] = Field("json", description="JSON lines, or text for people.")

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Give the environment priority over the file, whose content arrives as initial values."""
        return env_settings, init_settings

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if faults := list(self._list_faults()):
            raise ContradictingSettings(faults)
        return self

    def _list_faults(self) -> Iterator[str]:
        """Settings that can't be used together, as sentences that begin with their key."""
        names = [replica.name for pool in self.pools.values() for replica in pool.replicas]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            yield f"pools: replica names are unique in the fleet; used twice: {', '.join(twice)}"
        if self.general_pool not in self.pools:
            yield f"general_pool: there is no pool {self.general_pool!r}"
        for name, task in self.tasks.items():
            yield from task.faults(name, frozenset(self.pools), self.limits.request_timeout_seconds)
            yield from self._faults_of_monitor(name, task)
            yield from task.texts.faults(name, self.records.archive)
            fallback_pool = self.pools.get(task.fallback_pool or "")
            if task.general_usd_per_day is not None and (fallback_pool is None or fallback_pool.price is None):
                yield f"tasks.{name}.general_usd_per_day: its fallback pool needs a price"
        if self.monitor.webhook_key is not None and self.monitor.webhook_url is None:
            yield "monitor.webhook_key: nothing is sent that it could sign: set monitor.webhook_url too"
        if self.admin_key is not None and split_key(self.admin_key.get_secret_value()) is None:
            yield "admin_key: it has not the form of a key; `apprentice keygen` makes one"
        for name in sorted(self.tasks.keys() & {name for name, pool in self.pools.items() if pool.callable}):
            yield f"tasks.{name}: a task and a callable pool can't share a name"
        yield from faults_of(self.pools)
        yield from self._faults_of_redis()
        yield from self.texts.faults()

    def _faults_of_redis(self) -> Iterator[str]:
        """Settings that do not fit `redis_url`, as sentences that begin with their key."""
        url = self.redis_url.get_secret_value() if self.redis_url is not None else ""
        if self.redis.replicas_acked_min and not url:
            yield "redis.replicas_acked_min: the embedded Valkey has no replicas; set redis_url"
        if self.redis_url is not None and (fault := _find_address_fault(url)):
            yield f"redis_url: {fault}"
            return
        if self.redis_tls is not None and url.partition(":")[0].partition("+")[0] != "rediss":
            yield "redis_tls: it needs a redis_url that begins with rediss"
        if self.redis_password_file is not None and (not url or urlsplit(url).password):
            yield "redis_password_file: it needs a redis_url without a password"
        if self.redis_sentinel_password_file and ("+sentinel:" not in url or "sentinel_password=" in url):
            yield "redis_sentinel_password_file: it needs a redis_url of Sentinels without sentinel_password"

    def _faults_of_monitor(self, name: str, task: TaskSettings) -> Iterator[str]:
        """The faults of a task's monitoring, as sentences that begin with their key."""
        pools, explored_share = frozenset(self.pools), task.checks.degraded.explored_share
        reached, metrics = task.pools_allowed, self.judged_metrics()
        yield from task.monitor.faults(name, pools, metrics, explored_share, reached, self.general_pool)

    def read_redis_password(self) -> str | None:
        """The present password in `redis_password_file`; None if that is unset. Raises SettingsError."""
        return _read_password("redis_password_file", self.redis_password_file)

    def read_sentinel_password(self) -> str | None:
        """As read_redis_password, for `redis_sentinel_password_file`. Raises SettingsError."""
        return _read_password("redis_sentinel_password_file", self.redis_sentinel_password_file)

    def redis_address(self) -> str | None:
        """`redis_url` in the form for redis-py, with its passwords and the files of `redis_tls`.

        Raises SettingsError if a password's file can't be read.
        """
        if self.redis_url is None:
            return None
        url = self.redis_url.get_secret_value()
        if (password := self.read_redis_password()) is not None:
            url = _with_password(url, password)
        options = {"sentinel_password": self.read_sentinel_password()}
        if self.redis_tls is not None:
            files = self.redis_tls.files()
            options |= {"ssl_ca_certs": files.ca_file, "ssl_certfile": files.cert_file, "ssl_keyfile": files.key_file}
        query = urlencode({key: value for key, value in options.items() if value})
        return f"{url}{'&' if '?' in url else '?'}{query}" if query else url

    def find_redis_address(self) -> str:
        """The address of the Redis with the state, or of the embedded Valkey. Raises as redis_address."""
        return self.redis_address() or f"unix://{quote(str(self.embedded_socket()))}"

    def embedded_socket(self) -> Path:
        """The path of the embedded Valkey's socket."""
        return self.data_folder.absolute() / "valkey" / "valkey.sock"

    def pool_configs(self) -> list[PoolConfig]:
        """The pools in the form that serving uses."""
        seconds = self.limits.request_timeout_seconds
        return [pool.config(name, self.health_interval_seconds, seconds) for name, pool in self.pools.items()]

    def judged_metrics(self) -> dict[str, Metric]:
        """The declared feedback metrics, as far as it matters to how bad a value is."""
        return {name: declared.metric() for name, declared in self.feedback_metrics.items()}

    def list_class_tags(self) -> frozenset[str]:
        """The tags of feedback that name classes, of all tasks."""
        return frozenset(tag for task in self.tasks.values() if (tag := task.monitor.class_tag) is not None)

    def plan(self, task: str) -> MonitorPlan:
        """The plan by which the monitor watches a task's versions."""
        watch, check = self.tasks[task].monitor, self.tasks[task].checks.degraded
        enforced, metrics, itself = check.mode == "enforce", frozenset(self.feedback_metrics), self._judges_itself(task)
        return watch.plan(check.explored_share, enforced, metrics, self.monitor, itself, self.general_pool)

    def _judges_itself(self, task: str) -> bool:
        """True if the fallback's model also judges the task's pairs."""
        judge, fallback_pool = self.tasks[task].monitor.judge, self.pools.get(self.tasks[task].fallback_pool or "")
        judging = self.pools.get(judge.pool or self.general_pool)
        if judge.kind != "model" or fallback_pool is None or judging is None:
            return False
        return judging is fallback_pool or judging.base_model == fallback_pool.base_model

    @property
    def archive(self) -> Path:
        """The folder of the records' archive; with a bucket, the folder in which its files are made."""
        place = self.records.archive_folder
        return Path(self.data_folder / "records" if place is None or "://" in place else place).absolute()

    @property
    def archive_bucket(self) -> Bucket | None:
        """The bucket of the records' archive; None if the archive is a folder."""
        place = self.records.archive_folder
        return None if place is None or "://" not in place else Bucket(place, self.pulls.s3_endpoint_url)

    @property
    def dataset_folder(self) -> Path:
        """The folder of data sets."""
        return (self.datasets.folder or self.data_folder / "datasets").absolute()

    @property
    def training_folder(self) -> Path:
        """The folder of trainings' files. They are kept while the training can continue."""
        return (self.datasets.folder or self.data_folder).absolute() / "trainings"

    @property
    def text_spool(self) -> Path:
        """The folder in which this machine's gateways spool kept texts."""
        return self.data_folder.absolute() / "spool-texts"

    @property
    def store(self) -> Path:
        """The folder of the adapter store."""
        return (self.store_folder or self.data_folder / "store").absolute()


def _find_address_fault(url: str) -> str:
    """The fault of a Redis's address, without its password; empty if there is none."""
    from monitoring.redis_address import open_redis  # noqa: PLC0415 - only where a Redis is named
    from monitoring.redis_seeds import FORMS  # noqa: PLC0415

    try:
        open_redis(url)  # which connects with its first command
    except ValueError as error:
        if str(error) in FORMS.values():
            return str(error)
        return "it is not an address such as redis://HOST:6379/0; in a password / is written %2F, # %23, @ %40"
    return ""


def _read_password(key: str, path: Path | None) -> str | None:
    try:
        return None if path is None else path.read_text(encoding="utf-8").rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"{key}: {path} can't be read: {error}.") from None


def _with_password(url: str, password: str) -> str:
    parts = urlsplit(url)
    user, _, host = parts.netloc.rpartition("@")
    return parts._replace(netloc=f"{user.removesuffix(':')}:{quote(password, safe='')}@{host}").geturl()


def load_settings(path: Path | None, environment: Mapping[str, str] | None = None) -> Settings:
    """Read file and environment. Raises SettingsError that names each faulty key with its line or variable."""
    environment = os.environ if environment is None else environment
    text, raw = _read_file(path) if path is not None else ("", {})
    source = ConfigurationSource(path, text, _list_variables(environment))
    if faults := list(find_placeholders(raw)):
        raise source.explain(faults)
    _refuse_unknown_variables(environment)
    try:
        return Settings(**raw)
    except ValidationError as error:
        raise source.explain(describe_errors(error.errors(), Settings.model_json_schema())) from error
    except UnreadableVariable as error:
        name = re.sub(r'.*field "(\w+)".*', r"\1", str(error)).upper()
        text = f"The environment variable {ENVIRONMENT_PREFIX}{name}, or one that begins so, is not JSON: a list is"
        raise SettingsError(f"""{text} ["a", "b"], a section {{"key": 1}}.""") from error
    except RecursionError as error:
        text = f"A value of the environment variables {ENVIRONMENT_PREFIX}… is nested too deep: put it into the file."
        raise SettingsError(text) from error


def _read_file(path: Path) -> tuple[str, dict[str, Any]]:
    """The text of a configuration and its keys. Raises SettingsError."""
    try:
        text = path.read_text(encoding="utf-8")
        raw = read_yaml(text)
    except OSError as error:
        raise SettingsError(f"The configuration {path} can't be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise SettingsError(f"The configuration {path} is not text in UTF-8: save it as such.") from error
    except (yaml.YAMLError, RecursionError) as error:
        place, fault = describe_syntax(error)
        located = SettingsFault(fault, None, str(path), *(place or ()))
        where = "" if place is not None else f"{path}: "
        raise SettingsError(f"The configuration is not YAML: {where}{located}.", [located]) from error
    if raw is None:
        return text, {}
    if not isinstance(raw, dict):
        raise SettingsError(f"The configuration {path} is not a mapping of keys to values.")
    for key in raw:
        if not isinstance(key, str):
            raise SettingsError(f"The configuration {path} has a key that is not text: {key}.")
    return text, raw


def _list_variables(environment: Mapping[str, str]) -> dict[tuple[str | int, ...], str]:
    """The variables with settings, by the keys that they set."""
    names = [name for name in environment if name.upper().startswith(ENVIRONMENT_PREFIX)]
    return {tuple(name[len(ENVIRONMENT_PREFIX) :].lower().split("__")): name for name in names}


def _refuse_unknown_variables(environment: Mapping[str, str]) -> None:
    for variable in environment:
        if variable.upper().startswith(ENVIRONMENT_PREFIX) and variable not in COMMAND_LINE_VARIABLES:
            first, goes_deeper, _ = variable[len(ENVIRONMENT_PREFIX) :].lower().partition("__")
            field = Settings.model_fields.get(first)
            if field is None or (goes_deeper and not has_section(field.annotation)):
                text = f"The environment variable {variable} names no setting: unset it, or name one of"
                raise SettingsError(f"{text} docs/reference/settings.md, such as APPRENTICE_LISTEN__PORT.")


def find_misspelt_variables() -> Iterator[tuple[str, str]]:
    """Yield variables with a misspelt prefix, which the gateway does not read, each with the correct name."""
    names = {name.upper() for name in Settings.model_fields}
    for variable in os.environ:
        prefix, _, rest = variable.upper().partition("_")
        is_ours = f"{prefix}_" == ENVIRONMENT_PREFIX or rest.split("__", 1)[0] not in names
        if not is_ours and get_close_matches(f"{prefix}_", [ENVIRONMENT_PREFIX], 1, PREFIX_SIMILARITY_MIN):
            yield variable, f"{ENVIRONMENT_PREFIX}{rest}"
