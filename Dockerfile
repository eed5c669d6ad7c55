ARG PYTHON_IMAGE=python:3.12-slim

FROM ${PYTHON_IMAGE} AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_CONFIG_FILE=/run/secrets/pip.conf
WORKDIR /src
COPY requirements/build.lock requirements/gateway.lock requirements/
# Behind a proxy of one's own: --secret id=ca,src=CA_FILE and --secret id=pip.conf,src=PIP_CONFIG_FILE. Neither stays in the image.
RUN --mount=type=secret,id=ca --mount=type=secret,id=pip.conf \
    if [ -s /run/secrets/ca ]; then export PIP_CERT=/run/secrets/ca; fi \
 && python3 -m venv /opt/build \
 && /opt/build/bin/pip install --require-hashes --only-binary :all: -r requirements/build.lock \
 && python3 -m venv --without-pip /opt/apprentice \
 && /opt/build/bin/pip --python /opt/apprentice install --require-hashes --only-binary :all: -r requirements/gateway.lock
COPY pyproject.toml README.md LICENSE ./
COPY monitoring monitoring
COPY serving serving
COPY router router
COPY gateway gateway
RUN /opt/build/bin/pip wheel --no-index --no-deps --no-build-isolation --wheel-dir /dist . \
 && /opt/build/bin/pip --python /opt/apprentice install --no-index --no-deps /dist/*.whl

FROM ${PYTHON_IMAGE}
LABEL org.opencontainers.image.title="Apprentice gateway" \
      org.opencontainers.image.description="Routes OpenAI requests between a task's fine-tuned adapter and a general model" \
      org.opencontainers.image.licenses="Apache-2.0"
RUN install -d /etc/apprentice && install -d -m 0700 -o 65532 -g 65532 /var/lib/apprentice
COPY --from=build /opt/apprentice /opt/apprentice
ENV PATH=/opt/apprentice/bin:$PATH \
    HOME=/var/lib/apprentice \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    PROMETHEUS_DISABLE_CREATED_SERIES=true \
    APPRENTICE_LISTEN__HOST=0.0.0.0 \
    APPRENTICE_DATA_FOLDER=/var/lib/apprentice
WORKDIR /var/lib/apprentice
VOLUME /var/lib/apprentice
USER 65532:65532
EXPOSE 8080
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=3s --start-period=20s --retries=3 \
    CMD ["python3", "-c", "import ssl, urllib.request as r\ntls = ssl._create_unverified_context()\ntry:\n r.urlopen('http://127.0.0.1:8080/health/live', timeout=1)\nexcept OSError:\n r.urlopen('https://127.0.0.1:8080/health/live', timeout=1, context=tls)"]
ENTRYPOINT ["apprentice"]
CMD ["serve", "--config", "/etc/apprentice/apprentice.yaml"]
