touch /app/set-up
