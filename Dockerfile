# sgl serve as an image: the bundled pair, or any pair in a mounted folder.
#
#   docker build -t langchain-sgl .
#   docker build -t langchain-sgl:cuda --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu130 .
#   docker build -t langchain-sgl:cluster --build-arg EXTRAS=cluster,pictures .        (deploy/kuberay.yaml)
#   docker run --read-only --tmpfs /tmp -p 8000:8000 -e SGL_API_KEY=secret langchain-sgl
#   docker run ... -v /models:/models:ro langchain-sgl --small /models/small --large /models/large
FROM python:3.11-slim AS build
# CPU wheels by default: those for CUDA are 3 GB.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ARG EXTRAS=server,pictures
WORKDIR /source
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY langchain_sgl langchain_sgl
COPY sgl_engine sgl_engine
RUN python -m venv /opt/sgl \
    && /opt/sgl/bin/pip install --no-cache-dir -c constraints.txt --extra-index-url "$TORCH_INDEX" ".[$EXTRAS]"

FROM python:3.11-slim
RUN useradd --system --uid 10001 --no-create-home sgl
COPY --from=build /opt/sgl /opt/sgl
# Nothing is written but to /tmp; models of the hub, if they are wanted, go to a volume.
ENV PATH=/opt/sgl/bin:$PATH \
    HF_HOME=/tmp/huggingface \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
USER 10001
EXPOSE 8000
HEALTHCHECK --interval=30s --timeout=5s --start-period=120s \
    CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8000/ready', timeout=4)"]
# A key is needed: without SGL_API_KEY or --api-key the command refuses to listen to others.
ENTRYPOINT ["sgl", "serve", "--host", "0.0.0.0"]
