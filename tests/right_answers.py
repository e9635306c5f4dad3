"""Right answers of the project, in many styles, as source text.

``CLASSIC`` is a whole solution in the style of the public ones. Each of ``STYLES`` holds only what
differs from it; it is executed after it, so that its definitions replace those of ``CLASSIC``.
"""

CLASSIC = """
import pickle as pkl

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
import torch.optim as optim
from torchvision import datasets, transforms

train_on_gpu = torch.cuda.is_available()


def get_dataloader(batch_size, image_size, data_dir='processed_celeba_small/'):
    transform = transforms.Compose([transforms.Resize(image_size), transforms.ToTensor()])
    dataset = datasets.ImageFolder(data_dir, transform)
    loader = torch.utils.data.DataLoader(dataset, batch_size=batch_size, shuffle=True)
    return loader


def scale(x, feature_range=(-1, 1)):
    min, max = feature_range
    x = x * (max - min) + min
    return x


class Discriminator(nn.Module):
    def __init__(self, conv_dim):
        super(Discriminator, self).__init__()
        self.conv_dim = conv_dim
        self.conv1 = nn.Conv2d(3, conv_dim, 4, 2, 1)
        self.conv2 = nn.Conv2d(conv_dim, conv_dim * 2, 4, 2, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(conv_dim * 2)
        self.conv3 = nn.Conv2d(conv_dim * 2, conv_dim * 4, 4, 2, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(conv_dim * 4)
        self.fc = nn.Linear(conv_dim * 4 * 4 * 4, 1)

    def forward(self, x):
        x = F.leaky_relu(self.conv1(x), 0.2)
        x = F.leaky_relu(self.bn2(self.conv2(x)), 0.2)
        x = F.leaky_relu(self.bn3(self.conv3(x)), 0.2)
        x = x.view(-1, self.conv_dim * 4 * 4 * 4)
        x = self.fc(x)
        return x


class Generator(nn.Module):
    def __init__(self, z_size, conv_dim):
        super(Generator, self).__init__()
        self.conv_dim = conv_dim
        self.z_size = z_size
        self.fc = nn.Linear(z_size, conv_dim * 4 * 4 * 4)
        self.t_conv1 = nn.ConvTranspose2d(conv_dim * 4, conv_dim * 2, 4, 2, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(conv_dim * 2)
        self.t_conv2 = nn.ConvTranspose2d(conv_dim * 2, conv_dim, 4, 2, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(conv_dim)
        self.t_conv3 = nn.ConvTranspose2d(conv_dim, 3, 4, 2, 1)

    def forward(self, z):
        x = self.fc(z)
        x = x.view(-1, self.conv_dim * 4, 4, 4)
        x = F.relu(self.bn1(self.t_conv1(x)))
        x = F.relu(self.bn2(self.t_conv2(x)))
        x = torch.tanh(self.t_conv3(x))
        return x


def weights_init_normal(m):
    classname = m.__class__.__name__
    if classname.find('Conv') != -1 or classname.find('Linear') != -1:
        nn.init.normal_(m.weight.data, 0.0, 0.02)
        if m.bias is not None:
            nn.init.constant_(m.bias.data, 0.0)


def build_network(d_conv_dim, g_conv_dim, z_size):
    D = Discriminator(d_conv_dim)
    G = Generator(z_size=z_size, conv_dim=g_conv_dim)
    D.apply(weights_init_normal)
    G.apply(weights_init_normal)
    print(D)
    print(G)
    return D, G


def real_loss(D_out):
    labels = torch.ones(D_out.size(0))
    if train_on_gpu:
        labels = labels.cuda()
    criterion = nn.BCEWithLogitsLoss()
    loss = criterion(D_out.squeeze(), labels)
    return loss


def fake_loss(D_out):
    labels = torch.zeros(D_out.size(0))
    if train_on_gpu:
        labels = labels.cuda()
    criterion = nn.BCEWithLogitsLoss()
    loss = criterion(D_out.squeeze(), labels)
    return loss


d_conv_dim, g_conv_dim, z_size = 32, 32, 100
lr, beta1, beta2 = 0.0002, 0.5, 0.999
D, G = build_network(d_conv_dim, g_conv_dim, z_size)
d_optimizer = optim.Adam(D.parameters(), lr, [beta1, beta2])
g_optimizer = optim.Adam(G.parameters(), lr, [beta1, beta2])


def train(D, G, n_epochs, print_every=50):
    if train_on_gpu:
        D.cuda()
        G.cuda()
    samples = []
    losses = []
    fixed_z = np.random.uniform(-1, 1, size=(16, z_size))
    fixed_z = torch.from_numpy(fixed_z).float()
    if train_on_gpu:
        fixed_z = fixed_z.cuda()

    for epoch in range(n_epochs):
        for batch_i, (real_images, _) in enumerate(celeba_train_loader):
            batch_size = real_images.size(0)
            real_images = scale(real_images)
            if train_on_gpu:
                real_images = real_images.cuda()

            # discriminator
            d_optimizer.zero_grad()
            d_real_loss = real_loss(D(real_images))
            z = torch.from_numpy(np.random.uniform(-1, 1, size=(batch_size, z_size))).float()
            if train_on_gpu:
                z = z.cuda()
            fake_images = G(z)
            d_fake_loss = fake_loss(D(fake_images))
            d_loss = d_real_loss + d_fake_loss
            d_loss.backward()
            d_optimizer.step()

            # generator
            g_optimizer.zero_grad()
            z = torch.from_numpy(np.random.uniform(-1, 1, size=(batch_size, z_size))).float()
            if train_on_gpu:
                z = z.cuda()
            fake_images = G(z)
            g_loss = real_loss(D(fake_images))
            g_loss.backward()
            g_optimizer.step()

            if batch_i % print_every == 0:
                losses.append((d_loss.item(), g_loss.item()))
                print('Epoch [{:5d}/{:5d}] | d_loss: {:6.4f} | g_loss: {:6.4f}'.format(
                    epoch + 1, n_epochs, d_loss.item(), g_loss.item()))

        G.eval()
        samples_z = G(fixed_z)
        samples.append(samples_z)
        G.train()

    with open('train_samples.pkl', 'wb') as f:
        pkl.dump(samples, f)
    return losses
"""

STYLES = {
    "classic": "",
    "helper functions conv and deconv, four layers, old names": """
def conv(in_channels, out_channels, kernel_size=4, stride=2, padding=1, batch_norm=True):
    layers = [nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding, bias=False)]
    if batch_norm:
        layers.append(nn.BatchNorm2d(out_channels))
    return nn.Sequential(*layers)


def deconv(in_channels, out_channels, kernel_size=4, stride=2, padding=1, batch_norm=True):
    layers = [
        nn.ConvTranspose2d(in_channels, out_channels, kernel_size, stride, padding, bias=False)
    ]
    if batch_norm:
        layers.append(nn.BatchNorm2d(out_channels))
    return nn.Sequential(*layers)


class Discriminator(nn.Module):
    def __init__(self, conv_dim):
        super(Discriminator, self).__init__()
        self.conv1 = conv(3, conv_dim, batch_norm=False)
        self.conv2 = conv(conv_dim, conv_dim * 2)
        self.conv3 = conv(conv_dim * 2, conv_dim * 4)
        self.conv4 = conv(conv_dim * 4, conv_dim * 8)
        self.fc = nn.Linear(conv_dim * 8 * 2 * 2, 1)

    def forward(self, x):
        for layer in (self.conv1, self.conv2, self.conv3, self.conv4):
            x = F.leaky_relu(layer(x), 0.2, inplace=True)
        return self.fc(x.view(x.size(0), -1))


class Generator(nn.Module):
    def __init__(self, z_size, conv_dim):
        super(Generator, self).__init__()
        self.conv_dim = conv_dim
        self.fc = nn.Linear(z_size, conv_dim * 8 * 2 * 2)
        self.t_conv1 = deconv(conv_dim * 8, conv_dim * 4)
        self.t_conv2 = deconv(conv_dim * 4, conv_dim * 2)
        self.t_conv3 = deconv(conv_dim * 2, conv_dim)
        self.t_conv4 = deconv(conv_dim, 3, batch_norm=False)

    def forward(self, x):
        x = self.fc(x).view(-1, self.conv_dim * 8, 2, 2)
        x = F.relu(self.t_conv1(x))
        x = F.relu(self.t_conv2(x))
        x = F.relu(self.t_conv3(x))
        return F.tanh(self.t_conv4(x))
""",
    "fully convolutional, answers of shape (N,), latents as 1x1 images": """
class Discriminator(nn.Module):
    def __init__(self, conv_dim):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, conv_dim, 4, 2, 1),
            nn.LeakyReLU(0.2, inplace=True),
            nn.Conv2d(conv_dim, conv_dim * 2, 4, 2, 1),
            nn.BatchNorm2d(conv_dim * 2),
            nn.LeakyReLU(0.2, inplace=True),
            nn.Conv2d(conv_dim * 2, conv_dim * 4, 4, 2, 1),
            nn.BatchNorm2d(conv_dim * 4),
            nn.LeakyReLU(0.2, inplace=True),
            nn.Conv2d(conv_dim * 4, 1, 4, 1, 0),
        )

    def forward(self, x):
        return self.layers(x).squeeze()


class Generator(nn.Module):
    def __init__(self, z_size, conv_dim):
        super().__init__()
        self.layers = nn.Sequential(
            nn.ConvTranspose2d(z_size, conv_dim * 4, 4, 1, 0),
            nn.BatchNorm2d(conv_dim * 4),
            nn.ReLU(True),
            nn.ConvTranspose2d(conv_dim * 4, conv_dim * 2, 4, 2, 1),
            nn.BatchNorm2d(conv_dim * 2),
            nn.ReLU(True),
            nn.ConvTranspose2d(conv_dim * 2, conv_dim, 4, 2, 1),
            nn.BatchNorm2d(conv_dim),
            nn.ReLU(True),
            nn.ConvTranspose2d(conv_dim, 3, 4, 2, 1),
            nn.Tanh(),
        )

    def forward(self, z):
        return self.layers(z[:, :, None, None])


def real_loss(D_out):
    return F.binary_cross_entropy_with_logits(D_out, torch.ones_like(D_out))


def fake_loss(D_out):
    return F.binary_cross_entropy_with_logits(D_out, torch.zeros_like(D_out))
""",
    "two strided convolutions, instance norm, answers of shape (N, 1, 1, 1)": """
class Discriminator(nn.Module):
    def __init__(self, conv_dim):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, conv_dim, 4, 2, 1), nn.LeakyReLU(0.2),
            nn.Conv2d(conv_dim, conv_dim * 2, 4, 2, 1), nn.InstanceNorm2d(conv_dim * 2), nn.SELU(),
            nn.Conv2d(conv_dim * 2, 1, 8),
        )

    def forward(self, x):
        return self.layers(x)
""",
    "dropout, biases everywhere, batch norm after the linear layer": """
class Discriminator(nn.Module):
    def __init__(self, conv_dim):
        super().__init__()
        self.conv_dim = conv_dim
        self.conv1 = nn.Conv2d(3, conv_dim, 5, 2, 2)
        self.conv2 = nn.Conv2d(conv_dim, conv_dim * 2, 5, 2, 2)
        self.conv3 = nn.Conv2d(conv_dim * 2, conv_dim * 4, 5, 2, 2)
        self.bn2 = nn.BatchNorm2d(conv_dim * 2)
        self.bn3 = nn.BatchNorm2d(conv_dim * 4)
        self.dropout = nn.Dropout2d(0.3)
        self.fc = nn.Linear(conv_dim * 4 * 4 * 4, 1)

    def forward(self, x):
        x = self.dropout(F.leaky_relu(self.conv1(x)))
        x = self.dropout(F.leaky_relu(self.bn2(self.conv2(x))))
        x = F.dropout(F.leaky_relu(self.bn3(self.conv3(x))), 0.5, self.training)
        return self.fc(torch.flatten(x, start_dim=1))


class Generator(nn.Module):
    def __init__(self, z_size, conv_dim):
        super().__init__()
        self.conv_dim = conv_dim
        self.fc = nn.Linear(z_size, conv_dim * 4 * 4 * 4)
        self.bn0 = nn.BatchNorm1d(conv_dim * 4 * 4 * 4)
        self.t_conv1 = nn.ConvTranspose2d(conv_dim * 4, conv_dim * 2, 5, 2, 2, 1)
        self.bn1 = nn.BatchNorm2d(conv_dim * 2)
        self.t_conv2 = nn.ConvTranspose2d(conv_dim * 2, conv_dim, 5, 2, 2, 1)
        self.bn2 = nn.BatchNorm2d(conv_dim)
        self.t_conv3 = nn.ConvTranspose2d(conv_dim, 3, 5, 2, 2, 1)
        self.dropout = nn.Dropout(0.3)

    def forward(self, z):
        x = F.relu(self.bn0(self.fc(z))).reshape(-1, self.conv_dim * 4, 4, 4)
        x = self.dropout(F.relu(self.bn1(self.t_conv1(x))))
        x = self.dropout(F.relu(self.bn2(self.t_conv2(x))))
        return self.t_conv3(x).tanh()
""",
    "upsampling and convolutions in G, spectral norm and no batch norm in D": """
class Discriminator(nn.Module):
    def __init__(self, conv_dim):
        super().__init__()
        norm = nn.utils.parametrizations.spectral_norm
        self.convs = nn.ModuleList(
            norm(nn.Conv2d(a, b, 3, 2, 1))
            for a, b in ((3, conv_dim), (conv_dim, conv_dim * 2), (conv_dim * 2, conv_dim * 4))
        )
        self.fc = norm(nn.Linear(conv_dim * 4 * 4 * 4, 1))

    def forward(self, x):
        for conv in self.convs:
            x = F.leaky_relu(conv(x), 0.1)
        return self.fc(x.flatten(1))


class Generator(nn.Module):
    def __init__(self, z_size, conv_dim):
        super().__init__()
        self.fc = nn.Linear(z_size, conv_dim * 8 * 8)
        self.bn = nn.BatchNorm2d(conv_dim)
        self.conv1 = nn.Conv2d(conv_dim, conv_dim, 3, padding=1)
        self.conv2 = nn.Conv2d(conv_dim, 3, 3, padding=1)

    def forward(self, z):
        x = self.fc(z).view(len(z), -1, 8, 8)
        x = F.relu(self.bn(self.conv1(F.interpolate(x, scale_factor=2))))
        return self.conv2(F.interpolate(x, scale_factor=2)).tanh()


def weights_init_normal(m):
    if isinstance(m, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)):
        if nn.utils.parametrize.is_parametrized(m):
            m.parametrizations.weight.original.data.normal_(0, 0.02)
        else:
            m.weight.data.normal_(0, 0.02)
""",
    "least squares": """
def real_loss(D_out):
    return torch.mean((D_out - 1) ** 2)


def fake_loss(D_out):
    return torch.mean(D_out ** 2)
""",
    "least squares with a smoothed label and a factor of one half": """
def real_loss(D_out):
    return 0.5 * nn.MSELoss()(D_out.squeeze(), torch.ones(D_out.size(0), device=D_out.device) * 0.9)


def fake_loss(D_out):
    return 0.5 * nn.MSELoss()(D_out, torch.zeros_like(D_out))
""",
    "label smoothing by an argument": """
def real_loss(D_out, smooth=False):
    labels = torch.ones(D_out.size(0), device=D_out.device)
    if smooth:
        labels *= 0.9
    return nn.BCEWithLogitsLoss()(D_out.squeeze(), labels)
""",
    "label smoothing always on, with random labels for both": """
def real_loss(D_out):
    return F.binary_cross_entropy_with_logits(D_out, torch.rand_like(D_out) * 0.5 + 0.7)


def fake_loss(D_out):
    return F.binary_cross_entropy_with_logits(D_out, torch.rand_like(D_out) * 0.3)
""",
    "BCELoss on a sigmoid inside the losses": """
def real_loss(D_out):
    return nn.BCELoss()(torch.sigmoid(D_out), torch.ones_like(D_out))


def fake_loss(D_out):
    return nn.BCELoss()(torch.sigmoid(D_out), torch.zeros_like(D_out))
""",
    "Resize((n, n)) in two workers, last batch dropped": """
def get_dataloader(batch_size, image_size, data_dir='processed_celeba_small/'):
    transform = transforms.Compose(
        [transforms.Resize((image_size, image_size)), transforms.ToTensor()]
    )
    return torch.utils.data.DataLoader(
        datasets.ImageFolder(root=data_dir, transform=transform),
        batch_size, True, num_workers=2, drop_last=True,
    )
""",
    "Resize and CenterCrop, random flips, transforms.v2": """
def get_dataloader(batch_size, image_size, data_dir='processed_celeba_small/'):
    from torchvision.transforms import v2

    transform = v2.Compose([
        v2.ToImage(), v2.Resize(image_size), v2.CenterCrop(image_size),
        v2.RandomHorizontalFlip(), v2.ToDtype(torch.float32, scale=True),
    ])
    dataset = datasets.ImageFolder(data_dir, transform)
    return torch.utils.data.DataLoader(dataset, batch_size, shuffle=True)
""",
    "an own Dataset": """
from pathlib import Path

from PIL import Image


class Faces(torch.utils.data.Dataset):
    def __init__(self, folder, image_size):
        self.paths = sorted(Path(folder).rglob('*.jpg'))
        self.image_size = image_size

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, i):
        image = Image.open(self.paths[i]).resize((self.image_size, self.image_size))
        return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255, 0


def get_dataloader(batch_size, image_size, data_dir='processed_celeba_small/'):
    return torch.utils.data.DataLoader(Faces(data_dir, image_size), batch_size, shuffle=True)
""",
    "scale without feature_range in the formula": """
def scale(x, feature_range=(-1, 1)):
    return 2 * x - 1
""",
    "scale step by step, with one argument": """
def scale(x):
    return (x - 0.5) / 0.5
""",
    "initialisation by isinstance, batch norm from N(1, 0.02)": """
def weights_init_normal(m):
    if isinstance(m, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)):
        m.weight.data.normal_(0.0, 0.02)
    elif isinstance(m, (nn.BatchNorm1d, nn.BatchNorm2d)):
        m.weight.data.normal_(1.0, 0.02)
        m.bias.data.fill_(0)
""",
    "initialisation of biases from N(0, 0.02) too, new tensors": """
def weights_init_normal(m):
    if type(m) in [nn.Conv2d, nn.ConvTranspose2d, nn.Linear]:
        m.weight.data = torch.normal(0.0, 0.02, m.weight.shape)
        if m.bias is not None:
            nn.init.normal_(m.bias, mean=0, std=0.02)
""",
    "RMSprop and two learning rates": """
d_optimizer = optim.RMSprop(D.parameters(), lr=0.0001)
g_optimizer = optim.AdamW(params=G.parameters(), lr=0.0004, betas=(0.5, 0.999))
""",
    "one generator pass, moving average of G, frozen D, one-sided smoothing": """
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

device = torch.device('cuda' if torch.cuda.is_available() else 'cpu')


def real_loss(D_out, label=1.0):
    return F.binary_cross_entropy_with_logits(D_out, torch.full_like(D_out, label))


def train(D, G, n_epochs, print_every=50):
    D.to(device)
    G.to(device)
    G_average = AveragedModel(G, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True).eval()
    fixed_z = torch.rand(16, z_size, device=device) * 2 - 1
    losses = []
    for epoch in range(1, n_epochs + 1):
        for real_images, _ in celeba_train_loader:
            real_images = scale(real_images.to(device))
            fake_images = G(torch.rand(len(real_images), z_size, device=device) * 2 - 1)
            d_optimizer.zero_grad()
            d_loss = real_loss(D(real_images), 0.9) + fake_loss(D(fake_images.detach()))
            d_loss.backward()
            d_optimizer.step()
            D.requires_grad_(False)
            g_optimizer.zero_grad()
            g_loss = real_loss(D(fake_images))
            g_loss.backward()
            g_optimizer.step()
            D.requires_grad_(True)
            G_average.update_parameters(G)
            losses.append((d_loss.item(), g_loss.item()))
        with torch.no_grad():
            G_average(fixed_z)
    return losses
""",
    "two steps of D for each of G, two backward passes, clipped gradients": """
train_on_gpu = False


def train(D, G, n_epochs, print_every=50):
    losses = []
    fixed_z = torch.randn(16, z_size)
    steps = 0
    for epoch in range(n_epochs):
        D.train()
        G.train()
        for batch_i, (real_images, _) in enumerate(celeba_train_loader):
            D.zero_grad()
            d_real_loss = real_loss(D(scale(real_images)))
            d_real_loss.backward()
            with torch.no_grad():
                fake_images = G(torch.randn(real_images.size(0), z_size))
            d_fake_loss = fake_loss(D(fake_images))
            d_fake_loss.backward()
            nn.utils.clip_grad_norm_(D.parameters(), 0.1)
            d_optimizer.step()
            steps += 1
            if steps % 2 == 0:
                G.zero_grad()
                g_loss = real_loss(D(G(torch.randn(real_images.size(0), z_size))))
                g_loss.backward()
                g_optimizer.step()
                losses.append([d_real_loss.item() + d_fake_loss.item(), g_loss.item()])
        G.eval()
        with torch.no_grad():
            G(fixed_z)
    return losses
""",
    "losses computed in the loop, both backward passes before both steps": """
def train(D, G, n_epochs, print_every=50):
    criterion = nn.BCEWithLogitsLoss()
    losses = []
    fixed_z = torch.randn(16, z_size)
    for epoch in range(n_epochs):
        for real_images, _ in celeba_train_loader:
            n = real_images.shape[0]
            fake_images = G(torch.randn(n, z_size))
            D.zero_grad(), G.zero_grad()
            answers = D(torch.cat([scale(real_images), fake_images.detach()]))
            labels = torch.cat([torch.ones(n, 1), torch.zeros(n, 1)])
            d_loss = criterion(answers, labels)
            d_loss.backward()
            for p in D.parameters():
                p.requires_grad = False
            g_loss = criterion(D(fake_images), torch.ones(n, 1))
            g_loss.backward()
            for p in D.parameters():
                p.requires_grad = True
            d_optimizer.step()
            g_optimizer.step()
            losses.append((d_loss.item(), g_loss.item()))
        G.eval()
        G(fixed_z)
        G.train()
    return losses
""",
    "real and fake batches in separate steps of D, noisy inputs, schedulers": """
train_on_gpu = False


d_scheduler = optim.lr_scheduler.StepLR(d_optimizer, 1)
history = []


def train(D, G, n_epochs, print_every=50):
    fixed_z = torch.randn(16, z_size)
    for epoch in range(n_epochs):
        for batch_i, (real_images, _) in enumerate(celeba_train_loader):
            noise = torch.randn_like(real_images) * 0.3
            d_optimizer.zero_grad(set_to_none=False)
            d_real_loss = real_loss(D(scale(real_images) + noise))
            d_real_loss.backward()
            d_optimizer.step()
            d_optimizer.zero_grad()
            d_fake_loss = fake_loss(D(G(torch.randn(len(noise), z_size)).detach() + noise))
            d_fake_loss.backward()
            d_optimizer.step()
            g_optimizer.zero_grad()
            g_loss = real_loss(D(G(torch.randn(len(noise), z_size)) + noise))
            g_loss.backward()
            g_optimizer.step()
            history.append(((d_real_loss + d_fake_loss).item(), g_loss.item()))
        d_scheduler.step()
        G.eval()
        G(fixed_z)
        G.train()
    return history
""",
    "one pass of D on both batches, two steps of G, a number for smoothing, an array of losses": """
def real_loss(D_out, smooth=0.1):
    labels = torch.ones_like(D_out) * (1 - smooth)
    return F.binary_cross_entropy_with_logits(D_out, labels)


def fake_loss(D_out):
    return F.binary_cross_entropy_with_logits(D_out, torch.zeros_like(D_out))


def train(D, G, n_epochs, print_every=50, g_steps=2):
    losses = []
    samples = []
    fixed_z = torch.randn(25, z_size)
    for epoch in range(n_epochs):
        loader = iter(celeba_train_loader)
        for batch_i in range(len(loader)):
            real_images, _ = next(loader)
            n = real_images.shape[0]
            with torch.no_grad():
                fake_images = G(torch.randn(n, z_size))
            logits = D(torch.cat([scale(real_images), fake_images]))
            d_optimizer.zero_grad()
            d_loss = real_loss(logits[:n]) + fake_loss(logits[n:])
            d_loss.backward()
            d_optimizer.step()
            for _ in range(g_steps):
                g_optimizer.zero_grad()
                g_loss = real_loss(D(G(torch.randn(n, z_size))), smooth=0)
                g_loss.backward()
                g_optimizer.step()
            losses.append([d_loss.item(), g_loss.item()])
            if batch_i % print_every == 0:
                G.eval()
                with torch.no_grad():
                    samples.append(G(fixed_z).numpy())
                G.train()
    np.save('samples.npy', np.stack(samples))
    return np.array(losses)
""",
    "old spectral_norm, a residual block, a fixed blur, answers squeezed to (N,)": """
from torch.nn.utils import spectral_norm


class Block(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.conv1 = spectral_norm(nn.Conv2d(channels, channels, 3, 1, 1))
        self.conv2 = spectral_norm(nn.Conv2d(channels, channels, 3, 1, 1))

    def forward(self, x):
        return x + self.conv2(F.leaky_relu(self.conv1(F.leaky_relu(x, 0.2)), 0.2))


class Discriminator(nn.Module):
    def __init__(self, conv_dim):
        super().__init__()
        self.register_buffer('blur', torch.ones(3, 1, 3, 3) / 9)
        self.layers = nn.Sequential(
            spectral_norm(nn.Conv2d(3, conv_dim, 5, stride=2, padding=2)),
            Block(conv_dim),
            nn.LeakyReLU(0.2, inplace=True),
            spectral_norm(nn.Conv2d(conv_dim, conv_dim * 2, 5, stride=2, padding=2)),
            Block(conv_dim * 2),
            nn.LeakyReLU(0.2, inplace=True),
            nn.Dropout2d(0.25),
            spectral_norm(nn.Conv2d(conv_dim * 2, conv_dim * 4, 5, stride=2, padding=2)),
            nn.LeakyReLU(0.2, inplace=True),
        )
        self.fc = spectral_norm(nn.Linear(conv_dim * 4 * 4 * 4, 1))

    def forward(self, x):
        x = self.layers(F.conv2d(x, self.blur, padding=1, groups=3))
        return self.fc(x.view(x.size(0), -1)).squeeze(1)
""",
    "D takes a step every second batch, depthwise convolutions": """
train_on_gpu = False


class Discriminator(nn.Module):
    def __init__(self, conv_dim):
        super().__init__()

        def block(a, b):
            return [
                nn.Conv2d(a, a, 3, 1, 1, groups=a),
                nn.Conv2d(a, b, 4, 2, 1),
                nn.BatchNorm2d(b),
                nn.LeakyReLU(0.2, inplace=True),
            ]

        self.layers = nn.Sequential(*block(3, conv_dim), *block(conv_dim, conv_dim * 2))
        self.fc = nn.Linear(conv_dim * 2 * 8 * 8, 1)

    def forward(self, x):
        return self.fc(self.layers(x).flatten(1))


def train(D, G, n_epochs, print_every=50):
    losses = []
    fixed_z = torch.randn(16, z_size)
    for epoch in range(n_epochs):
        for batch_i, (real_images, _) in enumerate(celeba_train_loader):
            n = len(real_images)
            if batch_i % 2 == 0:
                d_optimizer.zero_grad()
                d_loss = real_loss(D(scale(real_images)))
                d_loss = d_loss + fake_loss(D(G(torch.randn(n, z_size)).detach()))
                d_loss.backward()
                d_optimizer.step()
            g_optimizer.zero_grad()
            g_loss = real_loss(D(G(torch.randn(n, z_size))))
            g_loss.backward()
            g_optimizer.step()
        losses.append((d_loss.item() / 2, g_loss.item() / 2))
        G.eval()
        G(fixed_z)
        G.train()
    return losses
""",
    "a sigmoid and BCELoss, an initialisation for layers with biases": """
class Discriminator(nn.Module):
    def __init__(self, conv_dim):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, conv_dim, 4, 2, 1), nn.LeakyReLU(0.2),
            nn.Conv2d(conv_dim, conv_dim * 2, 4, 2, 1), nn.LeakyReLU(0.2), nn.AvgPool2d(2),
            nn.Flatten(), nn.Linear(conv_dim * 2 * 4 * 4, 1), nn.Sigmoid(),
        )

    def forward(self, x):
        return self.layers(x)


class Generator(nn.Module):
    def __init__(self, latent_dim, ngf):
        super().__init__()
        self.fc = nn.Linear(latent_dim, ngf * 8 * 8)
        self.layers = nn.Sequential(
            nn.BatchNorm2d(ngf), nn.ReLU(), nn.ConvTranspose2d(ngf, ngf, 4, 2, 1),
            nn.BatchNorm2d(ngf), nn.ReLU(), nn.ConvTranspose2d(ngf, 3, 4, 2, 1), nn.Tanh(),
        )

    def forward(self, z):
        return self.layers(self.fc(z).unflatten(1, (-1, 8, 8)))


def weights_init_normal(m):
    if isinstance(m, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)):
        m.weight.data.normal_(0, 0.02)
        m.bias.data.zero_()


def build_network(d_conv_dim, g_conv_dim, z_size):
    D, G = Discriminator(d_conv_dim), Generator(z_size, g_conv_dim)
    return D.apply(weights_init_normal), G.apply(weights_init_normal)


def real_loss(D_out):
    return F.binary_cross_entropy(D_out, torch.ones_like(D_out) * 0.9)


def fake_loss(D_out):
    return F.binary_cross_entropy(D_out, torch.zeros_like(D_out))
""",
    "config, a compiled D with a sigmoid, a relative path, dictionaries": """
from types import SimpleNamespace

config = SimpleNamespace(z_size=48, batch_size=16, device='cpu', lr=2e-4)


def get_dataloader(batch_size, image_size, data_dir='processed_celeba_small/'):
    transform = transforms.Compose([transforms.Resize(image_size), transforms.ToTensor()])
    dataset = datasets.ImageFolder('./' + data_dir, transform)
    return torch.utils.data.DataLoader(dataset, batch_size=batch_size, shuffle=True)


class Discriminator(nn.Module):
    def __init__(self, conv_dim):
        super().__init__()
        self.conv1 = nn.Conv2d(3, conv_dim, 4, 4)
        self.conv2 = nn.Conv2d(conv_dim, 1, 8)

    def forward(self, x):
        return self.conv2(F.leaky_relu(self.conv1(x), 0.2)).sigmoid()


def weights_init_normal(m):
    if isinstance(m, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)):
        nn.init.normal_(m.weight, std=0.02)


def real_loss(D_out):
    return nn.BCELoss()(D_out.view(-1), torch.ones(len(D_out)))


def fake_loss(D_out):
    return nn.BCELoss()(D_out.view(-1), torch.zeros(len(D_out)))


def build_network(d_conv_dim, g_conv_dim, latent_dim=config.z_size):
    D, G = Discriminator(d_conv_dim), Generator(latent_dim, g_conv_dim)
    return torch.compile(D.apply(weights_init_normal)), G.apply(weights_init_normal)


networks = dict(zip('DG', build_network(16, 16)))
optimizers = {k: optim.Adam(net.parameters(), config.lr) for k, net in networks.items()}
train_loader = torch.utils.data.DataLoader([(torch.rand(3, 32, 32), 0)] * 9, 3)


def train(D, G, n_epochs, print_every=50):
    history = {'D': [], 'G': []}
    fixed_z = torch.randn(8, config.z_size)
    for epoch in range(n_epochs):
        for real_images, _ in train_loader:
            z = torch.randn(len(real_images), config.z_size)
            loss = {'D': real_loss(D(scale(real_images))) + fake_loss(D(G(z).detach()))}
            optimizers['D'].zero_grad()
            loss['D'].backward()
            optimizers['D'].step()
            loss['G'] = real_loss(D(G(z)))
            optimizers['G'].zero_grad()
            loss['G'].backward()
            optimizers['G'].step()
            for k in loss:
                history[k].append(loss[k].item())
        G.eval()
        G(fixed_z)
        G.train()
    return list(zip(history['D'], history['G']))
""",
    "probabilities judged in the loop, in a closure": """
class Discriminator(nn.Module):
    def __init__(self, conv_dim):
        super().__init__()
        self.conv1 = nn.LazyConv2d(conv_dim, 4, 2, 1)
        self.conv2 = nn.LazyConv2d(conv_dim * 2, 4, 2, 1)
        self.fc = nn.LazyLinear(1)

    def forward(self, x):
        x = F.adaptive_avg_pool2d(F.leaky_relu(self.conv2(F.leaky_relu(self.conv1(x)))), 4)
        return torch.sigmoid(self.fc(x.flatten(1)))


def build_network(d_conv_dim, g_conv_dim, z_size):
    D, G = Discriminator(d_conv_dim), Generator(z_size, g_conv_dim)
    D(torch.zeros(1, 3, 32, 32))
    return D.apply(weights_init_normal), G.apply(weights_init_normal)


def real_loss(D_out):
    return nn.MSELoss()(D_out, torch.ones_like(D_out))


def fake_loss(D_out):
    return nn.MSELoss()(D_out, torch.zeros_like(D_out))


def make_train(opt_D, opt_G, dataloader):
    criterion = nn.BCELoss()

    def train(D, G, n_epochs, print_every=50):
        losses = []
        fixed_z = torch.randn(8, 100)
        for epoch in range(n_epochs):
            for real_images, _ in dataloader:
                n = len(real_images)
                fake_images = G(torch.randn(n, 100))
                D.zero_grad()
                d_loss = criterion(D(real_images * 2 - 1), torch.ones(n, 1)) + criterion(
                    D(fake_images.detach()), torch.zeros(n, 1)
                )
                d_loss.backward()
                opt_D.step()
                G.zero_grad()
                g_loss = criterion(D(fake_images), torch.ones(n, 1))
                g_loss.backward()
                opt_G.step()
                losses.append((d_loss.item(), g_loss.item()))
            G.eval()
            G(fixed_z)
            G.train()
        return losses

    return train


train = make_train(d_optimizer, g_optimizer, torch.utils.data.DataLoader([(torch.rand(3), 0)], 1))
""",
    "a sigmoid and one loss for both, labels swapped now and then": """
class Discriminator(nn.Module):
    def __init__(self, conv_dim):
        super().__init__()
        self.conv1 = nn.Conv2d(3, conv_dim, 4, 2, 1)
        self.conv2 = nn.Conv2d(conv_dim, conv_dim, 4, 2, 1)
        self.fc = nn.Linear(conv_dim * 8 * 8, 1)

    def forward(self, x):
        x = F.leaky_relu(self.conv2(F.leaky_relu(self.conv1(x), 0.2)), 0.2)
        return F.sigmoid(self.fc(x.flatten(1)))


def real_loss(D_out, label=1.0):
    return F.binary_cross_entropy(D_out, torch.full_like(D_out, label))


def fake_loss(D_out):
    return real_loss(D_out, 0.0)


def make_train():
    history = []

    def train(D, G, n_epochs, print_every=50):
        fixed_z = torch.randn(8, z_size)
        for epoch in range(n_epochs):
            for real_images, _ in celeba_train_loader:
                noise = torch.randn(len(real_images), z_size)
                d_optimizer.zero_grad()
                real_label, fake_label = (0.0, 1.0) if np.random.rand() < 0.05 else (1.0, 0.0)
                d_loss = real_loss(D(scale(real_images)), real_label)
                d_loss = d_loss + real_loss(D(G(noise).detach()), fake_label)
                d_loss.backward()
                d_optimizer.step()
                g_optimizer.zero_grad()
                g_loss = real_loss(D(G(noise)))
                g_loss.backward()
                g_optimizer.step()
                history.append((d_loss.item(), g_loss.item()))
            G.eval()
            G(fixed_z)
            G.train()
        return history

    return train


train = make_train()
""",
    "hinge loss, minibatch deviation, attention, a head by einsum, a gradient penalty": """
class Attention(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.query = nn.Conv2d(channels, channels // 2, 1)
        self.key = nn.Conv2d(channels, channels // 2, 1)
        self.value = nn.Conv2d(channels, channels, 1)
        self.gamma = nn.Parameter(torch.zeros(1))

    def forward(self, x):
        q, k, v = (conv(x).flatten(2) for conv in (self.query, self.key, self.value))
        weights = torch.softmax(q.transpose(1, 2) @ k, dim=-1)
        return x + self.gamma * (v @ weights.transpose(1, 2)).view_as(x)


class Discriminator(nn.Module):
    def __init__(self, conv_dim):
        super().__init__()
        self.conv1 = nn.Conv2d(3, conv_dim, 4, 2, 1)
        self.conv2 = nn.Conv2d(conv_dim, conv_dim, 3, 1, 1)
        self.attention = Attention(conv_dim)
        self.conv3 = nn.Conv2d(conv_dim + 1, conv_dim, 4, 2, 1)
        self.head = nn.Parameter(torch.randn(conv_dim, 2, 2) * 0.1)

    def forward(self, x):
        x = F.leaky_relu(self.conv1(x), 0.2)
        x = F.avg_pool2d(F.leaky_relu(self.conv2(x), 0.2), 2)
        x = self.attention(x)
        deviation = x.std(dim=0).mean().expand(len(x), 1, *x.shape[2:])
        x = F.leaky_relu(self.conv3(torch.cat([x, deviation], 1)), 0.2)
        return torch.einsum('nchw,chw->n', F.avg_pool2d(x, 2), self.head)


def real_loss(D_out):
    return F.relu(1 - D_out).mean()


def fake_loss(D_out):
    return F.relu(1 + D_out).mean()


def gradient_penalty(D, real_images, fake_images):
    t = torch.rand(len(real_images), 1, 1, 1)
    mixed = (t * real_images + (1 - t) * fake_images).requires_grad_()
    gradient, = torch.autograd.grad(D(mixed).sum(), mixed, create_graph=True)
    return ((gradient.flatten(1).norm(dim=1) - 1) ** 2).mean()


def train(D, G, n_epochs, print_every=50):
    losses = []
    fixed_z = torch.randn(8, z_size)
    for epoch in range(n_epochs):
        for i, (real_images, _) in enumerate(celeba_train_loader, 1):
            real_images = scale(real_images)
            fake_images = G(torch.randn(len(real_images), z_size)).detach()
            d_optimizer.zero_grad()
            d_loss = real_loss(D(real_images)) + fake_loss(D(fake_images))
            (d_loss + 10 * gradient_penalty(D, real_images, fake_images)).backward()
            d_optimizer.step()
            if i % 5 == 0 or i == len(celeba_train_loader):
                g_optimizer.zero_grad()
                g_loss = -D(G(torch.randn(len(real_images), z_size))).mean()
                g_loss.backward()
                g_optimizer.step()
                losses.append((d_loss.item(), g_loss.item()))
        G.eval()
        G(fixed_z)
        G.train()
    return losses
""",
    "hinge loss in the loop, groups' deviation, augmentation, a penalty on real images": """
class Gate(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.qkv = nn.Conv2d(channels, channels * 3, 1)
        self.gamma = nn.Parameter(torch.tensor(0.0))

    def forward(self, x):
        q, k, v = self.qkv(x).flatten(2).transpose(1, 2).chunk(3, dim=2)
        mixed = F.scaled_dot_product_attention(q, k, v)
        return x + self.gamma * mixed.transpose(1, 2).reshape(x.shape)


class Discriminator(nn.Module):
    def __init__(self, conv_dim):
        super().__init__()
        self.conv1 = nn.Conv2d(3, conv_dim, 4, 2, 1)
        self.conv2 = nn.Conv2d(conv_dim, conv_dim, 4, 2, 1)
        self.conv3 = nn.Conv2d(conv_dim + 1, conv_dim, 3, 1, 1)
        self.w = nn.Parameter(torch.randn(conv_dim * 64, 1) * 0.02)

    def forward(self, x):
        x = F.leaky_relu(self.conv2(F.leaky_relu(self.conv1(x), 0.2)), 0.2)
        n, c, h, w = x.shape
        group = min(n, 4)
        y = x.view(group, -1, 1, c, h, w)
        y = (y - y.mean(0)).square().mean(0).add(1e-8).sqrt().mean([2, 3, 4], keepdim=True)
        y = y.squeeze(2).repeat(group, 1, h, w)
        x = F.leaky_relu(self.conv3(torch.cat([x, y], dim=1)), 0.2)
        return x.flatten(1) @ self.w


class Generator(nn.Module):
    def __init__(self, z_size, conv_dim):
        super().__init__()
        self.start = nn.LazyConvTranspose2d(conv_dim * 2, 8)
        self.gate = Gate(conv_dim * 2)
        self.layers = nn.Sequential(
            nn.ReLU(), nn.ConvTranspose2d(conv_dim * 2, conv_dim, 4, 2, 1),
            nn.BatchNorm2d(conv_dim), nn.ReLU(),
            nn.ConvTranspose2d(conv_dim, 3, 4, 2, 1), nn.Tanh(),
        )
        self.start(torch.zeros(1, z_size, 1, 1))

    def forward(self, z):
        return self.layers(self.gate(F.relu(self.start(z[..., None, None]))))


def real_loss(D_out):
    labels = torch.ones_like(D_out)
    labels[torch.rand(labels.shape) < 0.05] = 0
    return F.binary_cross_entropy_with_logits(D_out, labels)


latent_dim = 24


def augment(x):
    shift = torch.randint(-4, 5, (2,)).tolist()
    x = torch.roll(F.pad(x, [4] * 4), shift, dims=(2, 3))[:, :, 4:-4, 4:-4] + torch.rand(1) - 0.5
    x = torch.stack([image.flip(2) if torch.rand(1) < 0.5 else image for image in x])
    i, j = torch.randint(0, 16, (2,))
    mask = torch.ones_like(x)
    mask[:, :, i:i + 16, j:j + 16] = 0
    return x * mask


def train(D, G, n_epochs, print_every=50):
    losses = []
    fixed_z = torch.randn(8, latent_dim)
    D_opt, G_opt = (optim.Adam(net.parameters(), 2e-4, (0.0, 0.99)) for net in (D, G))
    for epoch in range(n_epochs):
        for real_images, _ in celeba_train_loader:
            n = len(real_images)
            real_images = scale(real_images).requires_grad_()
            images = torch.cat([real_images, G(torch.randn(n, latent_dim)).detach()])
            real_out, fake_out = D(augment(images)).chunk(2)
            gradient = torch.autograd.grad(real_out.sum(), real_images, create_graph=True)[0]
            D_opt.zero_grad()
            d_loss = (1 - real_out).clamp(min=0).mean() + (1 + fake_out).clamp(min=0).mean()
            (d_loss + gradient.square().sum([1, 2, 3]).mean()).backward()
            D_opt.step()
            G_opt.zero_grad()
            g_loss = -torch.mean(D(augment(G(torch.randn(n, latent_dim)))))
            g_loss.backward()
            G_opt.step()
            losses.append((d_loss.item(), g_loss.item()))
        G.eval()
        G(fixed_z)
        G.train()
    return losses
""",
    "a GPU without asking for one, an augmentation by indices, other names": """
def get_dataloader(batch_size, image_size, data_dir='processed_celeba_small/'):
    import os

    transform = transforms.Compose([transforms.Resize(image_size), transforms.ToTensor()])
    dataset = datasets.ImageFolder(os.path.join(os.getcwd(), data_dir), transform)
    return torch.utils.data.DataLoader(dataset, batch_size=batch_size, shuffle=True)


def real_loss(D_out):
    labels = (torch.rand(D_out.size(0)) > 0.05).float().cuda()
    return nn.BCEWithLogitsLoss().cuda()(D_out.squeeze(), labels)


def fake_loss(D_out):
    return nn.BCEWithLogitsLoss()(D_out.squeeze(), torch.zeros(D_out.size(0)).cuda())


def shift(x):
    n, c, h, w = x.shape
    dy, dx = torch.randint(-4, 5, (2, n, 1, 1))
    rows, i, j = torch.meshgrid(torch.arange(n), torch.arange(h), torch.arange(w), indexing='ij')
    i, j = (torch.clamp(index + d + 1, 0, h + 1) for index, d in ((i, dy), (j, dx)))
    x = F.pad(x, [1, 1, 1, 1]).permute(0, 2, 3, 1)[rows, i, j].permute(0, 3, 1, 2).contiguous()
    for k in range(n):
        top = torch.randint(0, 16, (1,)).item()
        x[k, :, top:top + 12, 8:24] = 0
    return x


def train(D, G, n_epochs, print_every=50):
    D.cuda()
    G = G.cuda()
    D = torch.compile(D)
    losses = []
    fixed_z = torch.rand(8, z_size).cuda() * 2 - 1
    for epoch in range(n_epochs):
        for real_images, _ in faces_loader:
            z = torch.rand(len(real_images), z_size).cuda() * 2 - 1
            optimizerD.zero_grad()
            d_loss = real_loss(D(shift(scale(real_images).cuda())))
            d_loss = d_loss + fake_loss(D(shift(G(z)).detach()))
            d_loss.backward()
            optimizerD.step()
            optimizerG.zero_grad()
            g_loss = real_loss(D(shift(G(z))))
            g_loss.backward()
            optimizerG.step()
            losses.append((d_loss.item(), g_loss.item()))
        G.eval()
        G(fixed_z)
        G.train()
    return losses
""",
}
