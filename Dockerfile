# strlab on a CPU: docker build -t strlab . && docker run --rm -p 8080:8080 strlab
# This file was checked by reading; it has not been built by those who wrote it.
FROM python:3.12-slim
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
WORKDIR /opt/strlab
RUN pip install --no-cache-dir -i "$TORCH_INDEX" torch torchvision
COPY pyproject.toml README.md LICENSE strlab.py ./
COPY common common
COPY projects projects
RUN pip install --no-cache-dir ".[serve,export,detect]" && useradd --create-home reader && mkdir /words && chown reader /words
USER reader
WORKDIR /words
EXPOSE 8080
# Others reach the container: set STRLAB_API_KEY with `docker run -e`, and --allow-host for the name that they use.
CMD ["strlab", "serve", "--host", "0.0.0.0", "--quiet"]
