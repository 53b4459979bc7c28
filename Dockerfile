# The image of every part of this project: the processor (default), fake engines, load test.
# The base is the one line to change for another registry or Python (3.11 or later).
ARG PYTHON=python:3.13-slim

FROM ${PYTHON} AS build
WORKDIR /src
RUN python -m venv /opt/aibrix-extproc
# Only what the package is made of, so that other edits keep this layer.
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY aibrix_extproc aibrix_extproc
RUN /opt/aibrix-extproc/bin/pip install --no-cache-dir --constraint constraints.txt .

FROM ${PYTHON}
COPY --from=build /opt/aibrix-extproc /opt/aibrix-extproc
ENV PATH=/opt/aibrix-extproc/bin:$PATH
# A number, so that Kubernetes can see that it is not root (runAsNonRoot).
USER 65532:65532
# gRPC for Envoy; health and metrics. The debug port, 8081, is bound to the
# loopback and so not exposed.
EXPOSE 50052 8080
ENTRYPOINT ["aibrix-extproc"]
CMD ["serve"]
