# The image of every part of this project: the processor (default), fake engines, load test.
# docs/containers.md says what can be set here and what was measured. No line needs BuildKit.

# Any image with Python 3.11 or later as `python3`: another registry, version or distribution.
ARG BASE_IMAGE=python:3.13-slim-trixie
# Where it is built: the same Python at the same path. One with a Rust toolchain saves installing it.
ARG BUILD_IMAGE=${BASE_IMAGE}

FROM ${BUILD_IMAGE} AS build
# The compiled index. auto: where a Rust toolchain is at hand or can be installed; required: or the
# build fails; none: without it, the index in plain Python serves, and the log says so.
ARG CORE=auto
# Debian's own compiler is too old: its backports are taken from here.
ARG DEBIAN_MIRROR=http://deb.debian.org/debian
# pip reads these where they are given. They stay in this stage.
ARG PIP_INDEX_URL
ARG PIP_NO_INDEX
WORKDIR /src
COPY deploy/image deploy/image
COPY core/Cargo.toml core/
RUN deploy/image/toolchain
# Only what the package is made of, so that other edits keep this layer. Wheels that lie in
# deploy/wheels are used before those of the registry; one of this project replaces its build.
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY deploy/wheels deploy/wheels
COPY core core
COPY aibrix_extproc aibrix_extproc
RUN deploy/image/install /opt/aibrix-extproc

FROM ${BASE_IMAGE}
ARG VERSION=0.1.0
# The commit that it was built of.
ARG REVISION=unknown
LABEL org.opencontainers.image.title="aibrix-extproc" \
      org.opencontainers.image.description="An Envoy external processor that sends each LLM request to the pod that already holds its prefix" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
COPY --from=build /opt/aibrix-extproc /opt/aibrix-extproc
ENV PATH=/opt/aibrix-extproc/bin:$PATH
# A number, so that Kubernetes can see that it is not root (runAsNonRoot).
USER 65532:65532
# gRPC for Envoy; health and metrics. The debug port, 8081, is bound to the
# loopback and so not exposed.
EXPOSE 50052 8080
# Of `serve`: ready means that it takes requests. Kubernetes has probes of its own.
HEALTHCHECK --interval=10s --timeout=5s --start-period=40s --retries=3 \
    CMD ["python3", "-m", "aibrix_extproc.health"]
# Without a shell before it: signals reach the process, which drains on SIGTERM.
STOPSIGNAL SIGTERM
ENTRYPOINT ["aibrix-extproc"]
CMD ["serve"]
