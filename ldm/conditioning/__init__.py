"""tau_theta(y): what turns an entry of a batch (text, class, picture) into Conditioning; one file each."""
