"""Routes in the shapes of other servers, so that their clients only change a URL."""
