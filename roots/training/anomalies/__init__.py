"""What happens when numbers go bad, and the checks that find machines which compute wrongly."""
